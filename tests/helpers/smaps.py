"""What Linux says of the mapping that an address lies in: the lines of /proc/self/smaps, by their keys."""


def about(address: int) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    inside = False
    for line in open("/proc/self/smaps"):
        key, *rest = line.split()
        if "-" in key:
            begin, end = (int(side, 16) for side in key.split("-"))
            inside = begin <= address < end
        elif inside:
            found[key.removesuffix(":")] = rest
    return found
