"""A reader for pickles that never imports or calls anything that a pickle names.

The standard library's unpickler runs programs. Restricting it would still leave bombs of nesting,
hashing and memo indices. `torch.save` writes few opcodes, so this module interprets them itself:
classes and functions become names (`Global`), their calls become records (`Opaque`), and the caller
replaces the calls that it knows.
"""

import pickle  # Only for the names of the opcodes.
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from densenet_jax.weights.readers.bounded_file import MAX_NAME, BoundedFile, WeightsError, shown

MAX_PICKLE = 32 << 20  # bytes; a DenseNet-201 with optimizer state takes 1 MB
MAX_OPERATIONS = 1_000_000
_OBJECT = 64  # bytes of an object without its contents

# Names that only an attack uses. They do nothing here, but other programs would run them, so the
# file is refused.
_ATTACK_MODULES = {
    *("os", "posix", "nt", "sys", "subprocess", "popen2", "pty", "socket", "shutil", "ctypes"),
    *("importlib", "runpy", "webbrowser"),
}
_ATTACK_BUILTINS = {
    *("eval", "exec", "execfile", "compile", "open", "file", "input", "apply", "breakpoint"),
    "__import__",
}

_NUMBERS = {
    pickle.BININT: struct.Struct("<i"),
    pickle.BININT1: struct.Struct("<B"),
    pickle.BININT2: struct.Struct("<H"),
    pickle.BINFLOAT: struct.Struct(">d"),
}
_TEXTS = {
    pickle.BINUNICODE: (struct.Struct("<I"), "utf-8"),
    pickle.SHORT_BINUNICODE: (struct.Struct("<B"), "utf-8"),
    pickle.BINUNICODE8: (struct.Struct("<Q"), "utf-8"),
    pickle.BINSTRING: (struct.Struct("<i"), "latin-1"),
    pickle.SHORT_BINSTRING: (struct.Struct("<B"), "latin-1"),
    pickle.BINBYTES: (struct.Struct("<I"), None),
    pickle.SHORT_BINBYTES: (struct.Struct("<B"), None),
    pickle.BINBYTES8: (struct.Struct("<Q"), None),
    pickle.BYTEARRAY8: (struct.Struct("<Q"), None),
}
_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}
_EMPTY = {
    pickle.EMPTY_LIST: list,
    pickle.EMPTY_SET: list,
    pickle.EMPTY_DICT: dict,
    pickle.EMPTY_TUPLE: tuple,
}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
_BYTE, _COUNT, _LONG_COUNT = struct.Struct("<B"), struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function, which is never imported."""

    name: str


@dataclass(eq=False, slots=True)
class Opaque:
    """A call that was not made, with its callee (None: a persistent id) and its arguments.

    `state` is what the pickle would have given to the result: mostly its attributes, by name.
    """

    callee: object
    args: object
    state: object = None


class Pickles:
    """Reads consecutive pickles from the beginning of a file.

    Args:
      file: the bytes to read.
      call: maps the name of a class or function and its arguments to the object that replaces
        the result of the call.
      resolve: maps a persistent id, by which `torch.save` refers to a storage, to the object that
        replaces it.

    Attributes:
      position: the first byte after the pickles that were read.
      operations: the number of opcodes and copied items so far, at most `MAX_OPERATIONS`.
    """

    def __init__(
        self,
        file: BoundedFile,
        call: Callable[[str, object], object] = lambda name, args: Opaque(Global(name), args),
        resolve: Callable[[object], object] = lambda pid: Opaque(None, pid),
    ) -> None:
        self.file = file
        self.data = file.read(0, min(file.size, MAX_PICKLE))
        self.position = 0
        self.operations = 0
        self._call = call
        self._resolve = resolve

    def load(self) -> Any:
        """Returns the object in the next pickle.

        It consists of plain Python data (a set becomes a list), `Global`, `Opaque` and the results
        of `call` and `resolve`.

        Raises:
          WeightsError: the pickle is damaged or too large, has an opcode that `torch.save` never
            writes, or names a function that only an attack uses.
        """
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        try:
            while (opcode := self._take(1)) != pickle.STOP:
                self._spend(1)
                self._step(opcode)
            return self.stack.pop()
        except (IndexError, KeyError, UnicodeDecodeError):
            raise self._damaged() from None

    def _damaged(self) -> WeightsError:
        return self.file.fail("its pickle is damaged; download or save the file again")

    def _take(self, size: int) -> bytes:
        """Returns the next `size` bytes and moves `position` past them."""
        if not 0 <= size <= len(self.data) - self.position:
            if len(self.data) == MAX_PICKLE:
                raise self.file.fail(
                    f"its pickle exceeds the limit of {MAX_PICKLE} bytes; save the state dict alone"
                )
            raise self.file.fail(
                "its pickle ends too early; the file is cut short, so download or save it again"
            )
        self.position += size
        return self.data[self.position - size : self.position]

    def _number(self, form: struct.Struct) -> Any:
        return form.unpack(self._take(form.size))[0]

    def _line(self) -> str:
        """Returns the text up to the next newline, of at most 511 bytes."""
        end = self.data.find(b"\n", self.position, self.position + 512)
        if end < 0:
            raise self._damaged()
        return self._take(end + 1 - self.position)[:-1].decode()

    def _spend(self, count: int) -> None:
        """Counts operations, so that a small pickle cannot keep the reader busy for ever."""
        self.operations += count
        if self.operations > MAX_OPERATIONS:
            raise self.file.fail("its pickle holds too many objects; save the state dict alone")

    def _pop_mark(self) -> list[Any]:
        """Removes the items above the topmost mark from the stack, and returns them."""
        begin = self.marks.pop()
        items = self.stack[begin:]
        del self.stack[begin:]
        return items

    def _step(self, opcode: bytes) -> None:
        """Executes one opcode on the stack."""
        push, pop = self.stack.append, self.stack.pop
        if form := _NUMBERS.get(opcode):
            return push(self._number(form))
        if opcode in _TEXTS:
            form, encoding = _TEXTS[opcode]
            text = self._take(self._number(form))
            # A character takes up to four bytes in memory.
            self.file.charge(_OBJECT + (4 if encoding else 1) * len(text))
            return push(text.decode(encoding) if encoding else text)
        if opcode in _CONSTANTS:
            return push(_CONSTANTS[opcode])
        if opcode in _EMPTY:
            return push(_EMPTY[opcode]())
        match opcode:
            case pickle.BINPUT:
                self.memo[self._number(_BYTE)] = self.stack[-1]
            case pickle.LONG_BINPUT:
                self.memo[self._number(_COUNT)] = self.stack[-1]
            case pickle.MEMOIZE:
                self.memo[len(self.memo)] = self.stack[-1]
            case pickle.BINGET:
                push(self.memo[self._number(_BYTE)])
            case pickle.LONG_BINGET:
                push(self.memo[self._number(_COUNT)])
            case pickle.MARK:
                self.marks.append(len(self.stack))
            case pickle.TUPLE | pickle.FROZENSET:
                push(tuple(self._pop_mark()))
            case pickle.TUPLE1 | pickle.TUPLE2 | pickle.TUPLE3:
                push(tuple(reversed([pop() for _ in range(_TUPLES[opcode])])))
            case pickle.BINPERSID:
                push(self._resolve(pop()))
            case pickle.REDUCE | pickle.NEWOBJ:
                args = pop()
                push(self._called(pop(), args))
            case pickle.NEWOBJ_EX:
                args = pop(), pop()
                push(Opaque(pop(), args))
            case pickle.BUILD:
                state = pop()
                if isinstance(self.stack[-1], Opaque):
                    self.stack[-1].state = state
                # Others lose their attributes, such as the `_metadata` of a state dict.
            case pickle.GLOBAL:
                push(self._global(self._line(), self._line()))
            case pickle.STACK_GLOBAL:
                name = pop()
                push(self._global(pop(), name))
            case pickle.APPEND:
                self._extend([pop()])
            case pickle.APPENDS | pickle.ADDITEMS:
                self._extend(self._pop_mark())
            case pickle.SETITEM:
                value = pop()
                self._update([pop(), value])
            case pickle.SETITEMS:
                self._update(self._pop_mark())
            case pickle.LONG1:
                push(int.from_bytes(self._take(self._number(_BYTE)), "little", signed=True))
            case pickle.POP:
                pop()
            case pickle.POP_MARK:
                self._pop_mark()
            case pickle.DUP:
                push(self.stack[-1])
            case pickle.PROTO:
                self._take(1)
            case pickle.FRAME:
                self._number(_LONG_COUNT)  # The size of a frame only helps buffering.
            case _:
                raise self.file.fail(
                    f"its pickle has the opcode {opcode!r}, which torch.save never writes; "
                    "save the weights again with torch.save or as safetensors"
                )

    def _global(self, module: object, name: object) -> Global:
        """Returns the name of a class or function, unless only an attack uses it."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise self._damaged()
        # Repeatedly joining two long texts could take far more memory than the size of the pickle.
        if max(len(module), len(name)) > MAX_NAME:
            raise self._damaged()
        self.file.charge(_OBJECT + 4 * (len(module) + len(name)))
        builtin = module in ("builtins", "__builtin__") and name.split(".")[0] in _ATTACK_BUILTINS
        if builtin or module.split(".")[0] in _ATTACK_MODULES:
            raise self.file.fail(
                f"it asks to call {shown(module + '.' + name)}, which weights never need; the "
                "file is malicious, so delete it and do not load it with any other program"
            )
        return Global(f"{module}.{name}")

    def _called(self, callee: object, args: object) -> object:
        """Returns the object that replaces the result of a call."""
        if not isinstance(callee, Global):
            return Opaque(callee, args)
        if callee.name != "collections.OrderedDict" or not isinstance(args, tuple):
            return self._call(callee.name, args)
        result: dict[Any, Any] = {}
        for pairs in args[:1]:  # Python 2 wrote the items as a list of pairs.
            items = pairs if isinstance(pairs, list) else []
            self._spend(len(items))
            for pair in items:
                if not isinstance(pair, list | tuple) or len(pair) != 2:
                    raise self._damaged()
                self._insert(result, *pair)
        return result

    def _extend(self, items: list[Any]) -> None:
        """Appends to the list on the stack; ignores other objects, such as an `Opaque`."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _update(self, items: list[Any]) -> None:
        """Adds alternating keys and values to the dict on the stack; ignores other objects."""
        if isinstance(self.stack[-1], dict):
            if len(items) % 2:
                raise self._damaged()
            for key, value in zip(items[::2], items[1::2], strict=True):
                self._insert(self.stack[-1], key, value)

    def _insert(self, result: dict[Any, Any], key: object, value: object) -> None:
        # Other keys are dropped: no weights have them, and hashing deeply nested tuples could take
        # for ever.
        if isinstance(key, str) or (isinstance(key, int) and -1 << 63 <= key < 1 << 63):
            if key in result:
                raise self.file.fail(
                    f"its pickle sets the name {shown(key)} twice; save the weights again"
                )
            result[key] = value
