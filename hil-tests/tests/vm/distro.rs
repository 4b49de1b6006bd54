//! The same machine as in [`disk`](crate::disk), with an image that dracut makes, systemd in it: systemd asks for the
//! passphrase at once, and takes the question back when the payload brings the key.

use anyhow::{Context, Result, ensure};

use crate::debian;
use crate::disk::{Encrypted, MODULES, UUID, opened_by_itself};
use crate::site::Site;

#[test]
fn an_image_by_dracut_opens_the_encrypted_root_with_the_delivered_key() -> Result<()> {
    crate::need_vm!();
    if let Some(why) = debian::missing() {
        println!("{why}");
        return Ok(());
    }
    let site = Site::shared()?;
    let machine = Encrypted::new(&site, "edge-dracut")?;
    let initrd = machine.node.machine.dir().join("dracut");
    machine.debian.dracut(&MODULES, &initrd).context("dracut")?;
    let vm = machine.boot_with(&initrd, &format!(" rd.luks.name={UUID}=root"))?;
    machine.node.learn()?;
    opened_by_itself(&machine.node, &vm)?;
    ensure!(vm.console_text().contains("passphrase"), "systemd did not ask while the payload was on its way");
    Ok(())
}
