"""A step as a program over values, run on an allocator instead of on numbers.

Values count their readers as TensorFlow's do: a value's memory goes back when the last operation that reads it is done, an
operation writes over an input that nobody else reads, and a list keeps what was put into it.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Collection, Sequence
from typing import Any

from memfit.backends.on_tensorflow.arena import Arena
from memfit.backends.on_tensorflow.heap import Heap

# Turns of a loop that are walked when nothing is kept from turn to turn: afterwards every turn finds the arena alike.
_STEADY_TURNS = 3
# Turns of a loop that are walked when lists grow; what later turns would add is added in one piece.
_MOST_TURNS = 32


class UnknownSizeError(Exception):
    """The size of something that matters cannot be read from the graph."""


@dataclasses.dataclass(frozen=True)
class Bound:
    """The size of an output whose shape the graph does not know, from the sizes of the inputs.

    Attributes:
        of: "largest" input, or "all" of them together (a list counts by what it keeps).
        ratio: Bytes of the output for each byte of that.
    """

    of: str
    ratio: float = 1.0


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation over numbered values.

    Attributes:
        name: Its type.
        kind: "make" (new memory), "alias" (outputs are the inputs, in order), "nothing" (outputs cost nothing), "list"
            (an empty list), "push" (input 1 into the list of input 0), "pop" (outputs: the list, its last element),
            "loop" (its body's values) or "branch" (input 0 chooses, the others are the branches' values).
        inputs: The values that it reads.
        outputs: The values that it makes.
        sizes: Bytes of each output, where it makes memory.
        in_place: Whether an output may take over an input of the same size that nobody else reads.
        programs: A loop's body, or every branch.
        turns: How often a loop runs at most; None where that is not known.
        parallel: How many of a loop's turns may be open at one time.
        after: Places, in the order of creation, of operations that must be done first whether or not it reads them.
        scratch: Bytes that its kernel takes for itself while it runs.
        scope: Its name in the graph, behind those of the scopes that it was created in.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...] = ()
    sizes: tuple[int | Bound, ...] = ()
    in_place: bool = False
    programs: tuple[Program, ...] = ()
    turns: int | None = None
    parallel: int = 1
    after: tuple[int, ...] = ()
    scratch: int = 0
    scope: str = ""


@dataclasses.dataclass(frozen=True)
class Program:
    """Operations in order, and the numbers of the values that come in and go out.

    Attributes:
        operations: In the order in which they run, at first that of their creation.
        arguments: Values that the caller gives.
        results: Values that the caller gets.
        readers: How many operations, and results, read each value.
        grows: Whether some list is pushed to.
    """

    operations: tuple[Operation, ...]
    arguments: tuple[int, ...]
    results: tuple[int, ...]
    readers: dict[int, int]
    grows: bool

    @classmethod
    def of(cls, operations: Sequence[Operation], arguments: Sequence[int], results: Sequence[int]) -> Program:
        readers: dict[int, int] = dict.fromkeys(arguments, 0)
        for operation in operations:
            readers.update(dict.fromkeys(operation.outputs, 0))
            for value in operation.inputs:
                readers[value] += 1
        for value in results:
            readers[value] += 1
        grows = any(o.kind == "push" or any(p.grows for p in o.programs) for o in operations)
        return cls(tuple(operations), tuple(arguments), tuple(results), readers, grows)

    @property
    def num_operations(self) -> int:
        """Operations, those of loops and branches included."""
        return len(self.operations) + sum(p.num_operations for o in self.operations for p in o.programs)

    @property
    def num_overlapping(self) -> int:
        """Operations in loops of which several turns may be open at one time."""
        inner = [(o, p) for o in self.operations for p in o.programs]
        return sum(p.num_operations if o.parallel > 1 else p.num_overlapping for o, p in inner)

    def shuffled(self, seed: int) -> Program:
        """The program in another order that TensorFlow may run it in: of the operations that are ready one of the first.

        Only for a program in the order of its creation.
        """
        chance = random.Random(seed)
        maker = {value: place for place, o in enumerate(self.operations) for value in o.outputs}
        needs = [
            {maker[value] for value in o.inputs if value in maker} | {place for place in o.after if place < here}
            for here, o in enumerate(self.operations)
        ]
        users: list[list[int]] = [[] for _ in needs]
        for place, sources in enumerate(needs):
            for source in sources:
                users[source].append(place)
        missing = [len(sources) for sources in needs]
        ready = [place for place, count in enumerate(missing) if not count]
        order = []
        while ready:
            place = ready.pop(min(len(ready) - 1, int(chance.expovariate(0.5))))
            order.append(place)
            for user in users[place]:
                missing[user] -= 1
                if not missing[user]:
                    ready.append(user)
        operations = [
            dataclasses.replace(o, programs=tuple(p.shuffled(seed) for p in o.programs)) if o.programs else o
            for o in (self.operations[place] for place in order)
        ]
        return dataclasses.replace(self, operations=tuple(operations))


def resized(
    program: Program, argument_sizes: Sequence[int], samples: int, to: int, *, but: Collection[int]
) -> tuple[Program, Sequence[int]]:
    """The program as it is for another number of samples, and the bytes of its arguments: as it is where the number stays.

    Sizes are taken to be of samples where they can be shared out among them, but those of weights, whose gradients have them.

    Args:
        program: A program for so many samples.
        argument_sizes: Bytes of its arguments.
        samples: Those that go through it at once.
        to: The other number.
        but: Sizes that stay.
    """
    if to == samples:
        return program, argument_sizes

    def one(size: Any) -> Any:
        of_samples = isinstance(size, int) and size % samples == 0 and size not in but
        return size // samples * to if of_samples else size

    def all_in(inner: Program) -> Program:
        operations = (
            dataclasses.replace(
                o, sizes=tuple(map(one, o.sizes)), scratch=one(o.scratch), programs=tuple(map(all_in, o.programs))
            )
            for o in inner.operations
        )
        return dataclasses.replace(inner, operations=tuple(operations))

    return all_in(program), [one(size) for size in argument_sizes]


class Memory:
    """The memory behind one or more values.

    Attributes:
        size: Its bytes.
        readers: Who still reads it.
        elements: What a list keeps; None where this is no list.
    """

    __slots__ = ("chunk", "elements", "readers", "size")

    def __init__(self, size: int, chunk: Any = None, elements: list[Memory] | None = None) -> None:
        self.size = size
        self.chunk = chunk
        self.elements = elements
        self.readers = 0


class Walker:
    """Walks programs on one allocator.

    Attributes:
        arena: The allocator.
        at_peak: The operation that brought the live bytes to their highest so far; None where no operation did.
    """

    def __init__(self, held_sizes: Sequence[int] = (), allocator: type[Arena] | type[Heap] = Arena) -> None:
        """Starts with an empty allocator, or one in which values were initialised that are held between steps.

        Args:
            held_sizes: Bytes of each.
            allocator: Where tensors are taken from.
        """
        self.arena: Any = allocator()
        self.at_peak: Operation | None = None
        for size in held_sizes:
            # An initialiser's values are there beside the variable until they are assigned.
            values, variable = self._taken(size), self._taken(size)
            variable.readers = values.readers = 1
            self._read(values)
        self._held = sum(held_sizes)
        self._told = 0

    @property
    def resident(self) -> int:
        """Resident bytes beside what is held between steps."""
        return int(self.arena.resident) - self._held

    def step(self, program: Program, argument_sizes: Sequence[int]) -> None:
        """One training step: its arguments are there from its start to its end."""
        arguments = [self._taken(size) for size in argument_sizes]
        for memory in arguments:
            memory.readers += 2
        self._told = self.arena.peak
        results = self.walk(program, arguments)
        for memory in (*results, *arguments):
            self._read(memory)

    def walk(self, program: Program, arguments: Sequence[Memory]) -> list[Memory]:
        """Walks a program once; it drops one reader of each argument as soon as it has taken it over.

        Returns:
            The memory behind its results, each with one reader for the caller to drop.
        """
        values: dict[int, Memory] = {}
        for number, memory in zip(program.arguments, arguments, strict=True):
            self._hold(values, program, number, memory)
        for memory in arguments:
            self._read(memory)
        for operation in program.operations:
            inputs = [values[number] for number in operation.inputs]
            outputs = self._outputs(operation, inputs)
            # Of a loop, the operation inside that did it has told already.
            if self.arena.peak > self._told:
                self._told = self.arena.peak
                self.at_peak = operation
            for number, memory in zip(operation.outputs, outputs, strict=True):
                self._hold(values, program, number, memory)
            for memory in (*inputs, *outputs):
                self._read(memory)
        return [values[number] for number in program.results]

    def _outputs(self, operation: Operation, inputs: list[Memory]) -> list[Memory]:
        """The memory behind an operation's outputs, each with one reader to drop."""
        kind = operation.kind
        if kind == "make":
            outputs = self._made(operation, inputs)
        elif kind == "alias":
            outputs = inputs[: len(operation.outputs)]
        elif kind == "nothing":
            outputs = [Memory(0) for _ in operation.outputs]
        elif kind == "list":
            outputs = [Memory(0, elements=[])]
        elif kind == "push":
            outputs = inputs[:1]
            self._push(inputs[0], inputs[1])
        elif kind == "pop":
            return self._popped(inputs[0])
        elif kind == "loop":
            return self._loop(operation, inputs)
        else:
            return self._branch(operation, inputs)
        for memory in outputs:
            memory.readers += 1
        return outputs

    def _made(self, operation: Operation, inputs: list[Memory]) -> list[Memory]:
        outputs: list[Memory] = []
        for rule in operation.sizes:
            size = rule if isinstance(rule, int) else _bounded(rule, inputs)
            reused = None
            if operation.in_place and size:
                reused = next((m for m in inputs if m.readers == 1 and m.size == size and m not in outputs), None)
            outputs.append(reused or self._taken(size))
        if operation.scratch:
            self.arena.give(self.arena.take(operation.scratch), operation.scratch)
        return outputs

    def _push(self, handle: Memory, element: Memory) -> None:
        if handle.elements is None:
            handle.elements = []
        handle.elements.append(element)
        element.readers += 1

    def _popped(self, handle: Memory) -> list[Memory]:
        element = handle.elements.pop() if handle.elements else Memory(0)
        if not element.readers:
            element.readers = 1
        handle.readers += 1
        return [handle, element]

    def _loop(self, operation: Operation, inputs: list[Memory]) -> list[Memory]:
        body = operation.programs[0]
        turns, later = _STEADY_TURNS, 0
        if body.grows:
            if operation.turns is None:
                raise UnknownSizeError(f"the number of turns of {operation.scope}")
            turns = min(operation.turns, _MOST_TURNS)
            later = operation.turns - turns
        elif operation.turns is not None:
            turns = min(turns, operation.turns)
        # The first values belong to the loop from here on: they go when its first turn has read them. Its caller drops them
        # once more afterwards.
        state = list(inputs)
        kept: set[int] = set()
        for turn in range(turns):
            if later > 0 and turn == turns - 1:
                kept = _elements(state)
            state = self.walk(body, state)
        if later > 0 and turns:
            self._keep_later(state, kept, later)
        for memory in inputs:
            memory.readers += 1
        return state

    def _keep_later(self, state: list[Memory], kept: set[int], later: int) -> None:
        """Adds to each list, in one piece, what the turns that are not walked would: as much as the last one each."""
        for memory in state:
            new = {id(element): element.size for element in memory.elements or () if id(element) not in kept}
            kept |= new.keys()
            if sum(new.values()):
                self._push(memory, self._taken(sum(new.values()) * later))

    def _branch(self, operation: Operation, inputs: list[Memory]) -> list[Memory]:
        """Walks every branch, one after the other; the results are those of the last."""
        results: list[Memory] = []
        for program in operation.programs:
            for memory in results:
                self._read(memory)
            for memory in inputs[1:]:
                memory.readers += 1
            results = self.walk(program, inputs[1:])
        return results

    def _taken(self, size: int) -> Memory:
        return Memory(size, self.arena.take(size) if size else None)

    def _hold(self, values: dict[int, Memory], program: Program, number: int, memory: Memory) -> None:
        values[number] = memory
        memory.readers += program.readers[number]

    def _read(self, memory: Memory) -> None:
        memory.readers -= 1
        if memory.readers > 0:
            return
        if memory.size:
            self.arena.give(memory.chunk, memory.size)
            memory.size = 0
        for element in memory.elements or ():
            self._read(element)
        if memory.elements:
            memory.elements = []


def _elements(state: Sequence[Memory]) -> set[int]:
    """What the lists of a loop keep: a tensor may be in several, as the output of one turn and the input of the next."""
    return {id(element) for memory in state for element in memory.elements or ()}


def _bounded(bound: Bound, inputs: Sequence[Memory]) -> int:
    sizes = [memory.size + sum(element.size for element in memory.elements or ()) for memory in inputs]
    return int((sum(sizes) if bound.of == "all" else max(sizes, default=0)) * bound.ratio)
