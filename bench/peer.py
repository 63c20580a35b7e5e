"""Our side of the comparison: one long-lived process that speaks JSON lines (README.md)."""

import json
import subprocess


class Peer:
    """A running `mutandis-bench-peer`; `ask` sends one request and waits for its reply."""

    def __init__(self, binary, model, threads):
        command = [str(binary), "--model", str(model), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hello = self.read()

    def ask(self, **request):
        """The reply to one request; its `error` becomes an exception."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer ended with code {self.process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"the peer says: {reply['error']}")
        return reply

    def close(self):
        """Ends the process by closing its input."""
        self.process.stdin.close()
        self.process.wait(timeout=30)
