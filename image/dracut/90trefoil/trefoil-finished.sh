#!/bin/sh
# dracut, initqueue/finished: true once the payload is here, or will not come.

[ -e /run/initramfs/trefoil.done ]
