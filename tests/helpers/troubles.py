"""Items that bring the process which reads them into trouble."""

import os
import resource
import signal


class Items:
    """Ten items or more, the sixth of which brings its process into trouble."""

    def __init__(self, trouble, count=10):
        self.trouble = trouble
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.trouble() if i == 5 else i

    def describe(self, i):
        return f"item {i}"


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(7)


def limit_memory(more):
    with open("/proc/self/statm") as f:
        pages = int(f.read().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def allocate_too_much():
    limit_memory(20 << 20)
    return bytearray(1 << 30)


def leave_no_room_to_send():
    item = bytearray(200 << 20)
    limit_memory(20 << 20)
    return item


def tangle():
    return lambda: "what cannot be pickled"
