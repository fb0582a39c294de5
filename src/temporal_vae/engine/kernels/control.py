"""The first words to write kernels with: integers, loops, and memory that threads share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

Value = Any  # an `ir.Value`; llvmlite ships no types

I16, I32, I64 = (ir.IntType(bits) for bits in (16, 32, 64))


class Control:
    """Emits one function, of integers that are 64 bits wide."""

    def __init__(self, function: ir.Function) -> None:
        self.ir = ir.IRBuilder(function.append_basic_block("entry"))
        self.function = function

    # Integers

    def integer(self, value: int | Value) -> Value:
        """A 64-bit integer, constant or computed."""
        return ir.Constant(I64, value) if isinstance(value, int) else value

    def add(self, *terms: int | Value) -> Value:
        """The sum of integers."""
        total = self.integer(terms[0])
        for term in terms[1:]:
            total = self.ir.add(total, self.integer(term))
        return total

    def sub(self, a: int | Value, b: int | Value) -> Value:
        """The difference of two integers."""
        return self.ir.sub(self.integer(a), self.integer(b))

    def mul(self, *factors: int | Value) -> Value:
        """The product of integers."""
        product = self.integer(factors[0])
        for factor in factors[1:]:
            product = self.ir.mul(product, self.integer(factor))
        return product

    def less(self, a: int | Value, b: int | Value) -> Value:
        """Whether `a < b`."""
        return self.ir.icmp_signed("<", self.integer(a), self.integer(b))

    def least(self, a: int | Value, b: int | Value) -> Value:
        """The smaller of two integers."""
        return self.ir.select(self.less(a, b), self.integer(a), self.integer(b))

    def clamp(self, value: Value, stop: Value) -> Value:
        """`value` moved into `[0, stop)`."""
        value = self.ir.select(self.less(value, 0), self.integer(0), value)
        return self.least(value, self.sub(stop, 1))

    # Control

    @contextmanager
    def loop(self, start: int | Value, stop: int | Value, step: int | Value = 1) -> Iterator[Value]:
        """`for i in range(start, stop, step)`."""
        entry = self.ir.block
        head, body, done = (self.function.append_basic_block(name) for name in ("head", "body", "done"))
        start, stop = self.integer(start), self.integer(stop)
        self.ir.branch(head)
        self.ir.position_at_end(head)
        index = self.ir.phi(I64)
        index.add_incoming(start, entry)
        self.ir.cbranch(self.less(index, stop), body, done)
        self.ir.position_at_end(body)
        yield index
        index.add_incoming(self.add(index, step), self.ir.block)
        self.ir.branch(head)
        self.ir.position_at_end(done)

    @contextmanager
    def forever(self) -> Iterator[Callable[[Value], None]]:
        """`while True`; what is yielded leaves the loop if a condition holds."""
        head, done = (self.function.append_basic_block(name) for name in ("again", "left"))

        def leave(condition: Value) -> None:
            rest = self.function.append_basic_block("rest")
            self.ir.cbranch(condition, done, rest)
            self.ir.position_at_end(rest)

        self.ir.branch(head)
        self.ir.position_at_end(head)
        yield leave
        self.ir.branch(head)
        self.ir.position_at_end(done)

    @contextmanager
    def turns(self, ticket: Value, count: Value, most: Value) -> Iterator[Value]:
        """`while (i := next(ticket)) < count`, `most` times, for a counter that other threads count up too."""
        taken = self.variable(self.integer(0))
        with self.forever() as leave:
            leave(self.ir.icmp_signed("==", self.get(taken), most))
            index = self.ir.atomic_rmw("add", self.pointer(ticket), self.integer(1), "monotonic")
            leave(self.ir.icmp_signed(">=", index, count))
            yield index
            self.set(taken, self.add(self.get(taken), 1))

    def call(self, function: Value, *given: Value) -> None:
        """A function at an address, of integers."""
        kind = ir.FunctionType(I64, [I64] * len(given))
        self.ir.call(self.ir.inttoptr(function, kind.as_pointer()), given)

    def pause(self) -> None:
        """A moment, for a thread that waits awake."""
        if "x86" in self.function.module.triple:
            self.ir.call(self._declared("llvm.x86.sse2.pause", ir.FunctionType(ir.VoidType(), [])), [])

    def variable(self, value: Value) -> Value:
        """A value that loops may change; `get` and `set` it. It lives in a register where one is free."""
        with self.ir.goto_entry_block():
            place = self.ir.alloca(value.type)
        self.ir.store(value, place)
        return place

    def get(self, place: Value) -> Value:
        """The present value of a `variable`."""
        return self.ir.load(place)

    def set(self, place: Value, value: Value) -> None:
        """Change a `variable`."""
        self.ir.store(value, place)

    def word(self, address: Value) -> Value:
        """A 64-bit integer in memory."""
        return self.ir.load(self.pointer(address), align=8)

    def pointer(self, address: Value) -> Value:
        """To a 64-bit integer in memory."""
        return self._at(address, I64)

    def shared_word(self, address: Value) -> Value:
        """A 64-bit integer that another thread may change; what that thread wrote before is there."""
        return self.ir.load_atomic(self.pointer(address), "acquire", 8)

    def count_up(self, address: Value, step: int) -> Value:
        """Add to a 64-bit integer that other threads change too; what it was before."""
        return self.ir.atomic_rmw("add", self.pointer(address), self.integer(step), "seq_cst")

    def _at(self, address: Value, kind: ir.Type) -> Value:
        return self.ir.inttoptr(address, kind.as_pointer())

    def _declared(self, name: str, kind: ir.FunctionType) -> Value:
        module = self.function.module
        return module.globals.get(name) or ir.Function(module, kind, name)
