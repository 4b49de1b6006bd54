"""A peer of the gateway that shares no code with it: aiocoap, over CoAP on TLS on TCP, asking and being asked.

Usage: peer.py URL CA.pem             GETs /.well-known/core and prints it
       peer.py URL CA.pem HELLO_HEX   says hello, answers the first challenge with nonsense, and waits for the end

Prints a line for each thing that happens: `answer CODE HEX`, `challenge HEX`, `over`.
"""

import asyncio
import sys

import aiocoap
from aiocoap import resource

PATIENCE_S = 30


def tell(*words):
    print(*words, flush=True)


class Nonsense(resource.Resource):
    """What a challenge is asked of, and what answers it."""

    def __init__(self):
        super().__init__()
        self.connection = asyncio.get_running_loop().create_future()

    async def render_post(self, request):
        tell("challenge", request.payload.hex())
        if not self.connection.done():
            self.connection.set_result(request.remote)
        return aiocoap.Message(code=aiocoap.CONTENT, payload=b"nonsense")


async def ask(context, **request):
    answer = await asyncio.wait_for(context.request(aiocoap.Message(**request)).response, PATIENCE_S)
    tell("answer", answer.code.dotted, answer.payload.hex())


async def main(url, ca, hello=None):
    nonsense = Nonsense()
    site = resource.Site()
    site.add_resource(["v1", "challenge"], nonsense)
    # Only what dials: this end has no listener, and serves what it has on the connection that it made.
    context = await aiocoap.Context.create_server_context(site, transports=["tlsclient"])
    context.client_credentials.load_from_dict({f"{url}/*": {"tlscert": {"certfile": ca}}})
    if hello is None:
        await ask(context, code=aiocoap.GET, uri=f"{url}/.well-known/core")
    else:
        await ask(context, code=aiocoap.POST, uri=f"{url}/v1/hello", payload=bytes.fromhex(hello))
        connection = await asyncio.wait_for(nonsense.connection, PATIENCE_S)
        for _ in range(PATIENCE_S * 50):
            if connection._transport.is_closing():
                tell("over")
                break
            await asyncio.sleep(0.02)
    await context.shutdown()


asyncio.run(main(*sys.argv[1:]))
