"""Machine code of NVIDIA GPUs, as `cuobjdump -sass` prints it: its loops, and what one iteration costs a thread."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;", re.M)
_BITS = re.compile(r"\.[US]?(8|16|64|128)\b")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its address in bytes, the predicate it depends on, its name with modifiers, its operands."""

    address: int
    predicate: str
    name: str
    operands: str

    @property
    def target(self) -> int | None:
        """Address to which it may branch; None if it does not branch within the function."""
        found = re.search(r"0x([0-9a-f]+)$", self.operands) if self.name.split(".")[0] == "BRA" else None
        return int(found[1], 16) if found else None

    @property
    def is_final(self) -> bool:
        """True if the next instruction is never executed after it."""
        is_conditional = self.predicate or re.match(r"!?U?P\w+,", self.operands)
        return self.name.split(".")[0] in ("BRA", "EXIT", "RET") and not is_conditional

    @property
    def is_special(self) -> bool:
        """True if the multi-function unit executes it, which does 16 a cycle, an eighth of an FMA's rate."""
        return self.name.startswith("MUFU")

    def accessed(self, kind: str) -> int:
        """Return the bytes that a thread loads or stores if it is a `kind` of access, such as "LDG"; else 0."""
        if self.name.split(".")[0] != kind:
            return 0
        bits = _BITS.search(self.name)
        return int(bits[1]) // 8 if bits else 4


def functions(text: str) -> dict[str, list[Instruction]]:
    """Return the instructions of each function in the output of `cuobjdump -sass`, by its mangled name."""
    _, *parts = re.split(r"^\s*Function : (\S+)$", text, flags=re.M)
    return {name: _instructions(body) for name, body in zip(parts[::2], parts[1::2], strict=True)}


def _instructions(body: str) -> list[Instruction]:
    found = [Instruction(int(a, 16), predicate, name, rest) for a, predicate, name, rest in _LINE.findall(body)]
    ends = [i for i, x in enumerate(found) if x.target == x.address]  # a branch to itself fills the rest of the memory
    return found[: ends[0]] if ends else found


def innermost_loops(instructions: Sequence[Instruction]) -> list[list[Instruction]]:
    """Return the shortest iteration of each innermost loop, in the order of their addresses.

    That is what is executed if every branch takes the shorter way: without the code for an incomplete tile, for
    instance.
    """
    index = {x.address: i for i, x in enumerate(instructions)}
    spans = {(index[x.target], i) for i, x in enumerate(instructions) if x.target in index and index[x.target] <= i}
    innermost = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    return [_shortest_way(instructions, *span, index) for span in sorted(innermost)]


def _shortest_way(
    instructions: Sequence[Instruction], first: int, last: int, index: dict[int, int]
) -> list[Instruction]:
    """Return the fewest instructions on a way from `first` to `last`, both included."""
    ways: dict[int, tuple[int, int]] = {first: (1, -1)}  # the length of the way to each instruction, and the one before
    for i in range(first, last):
        if i not in ways:
            continue
        x = instructions[i]
        following = [] if x.is_final else [i + 1]
        if x.target in index and i < index[x.target] <= last:
            following.append(index[x.target])
        for j in following:
            ways[j] = min(ways.get(j, (len(instructions), -1)), (ways[i][0] + 1, i))
    way, i = [], last
    while i >= 0:
        way.append(instructions[i])
        i = ways[i][1]
    return way[::-1]
