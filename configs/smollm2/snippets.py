"""One line of code from its English specification, in Python and in Java: the generator.

A row is one specification with its line in both languages: the two skills share their meaning and
differ in surface syntax. Names, numbers and words are drawn from pools that a hash splits
into ``train`` (the specialists' rows), ``dev`` (used for all tuning) and ``tasks`` (the items of
``tasks/data``): no name, number or word is in two splits.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

LANGUAGES = ("python", "java")
PROMPT = {"python": "```python\n# {}.", "java": "```java\n// {}."}
SPLITS = {"train": (0.0, 0.6), "dev": (0.6, 0.75), "tasks": (0.75, 1.0)}
NUMBERS = range(2, 400)

ADJECTIVES = (
    "active average base best blue broken cached clean closed cold common current daily dark deep "
    "default direct distant dry early empty extra fast final first fixed free full global green "
    "heavy hidden high hot idle inner joint known large last late left light linear local long "
    "lost loud low main manual maximum mean minor missing mixed narrow new next noisy normal odd "
    "old open outer paid partial past pending plain primary public quick quiet random rare raw "
    "ready recent red remote round safe second shared sharp short simple slow small smooth soft "
    "spare stable steady strong sunny target thin tight total upper urgent useful valid warm weak "
    "weekly wide yearly young"
)
NOUNS = (
    "account amount angle answer apple area balance bonus book border bottle box branch bridge "
    "budget button camera card chapter charge city client cloud color cost counter country "
    "coupon course cover credit customer date debt degree delay depth device discount distance "
    "door driver edge engine error event factor farm fee field flight floor folder frame fuel "
    "garden gate grade group guest height hotel hour image income index item journey key kitchen "
    "label lake lamp layer length letter level limit line load margin market mask member message "
    "meter minute month motor mountain mouse name node note offset order owner packet page paint "
    "parcel payment people phase phone pixel planet player point price queue radius rate record "
    "region rent result river road room route salary sample score seat shift signal size speed "
    "staff stage station step stock street student supply table tax team ticket time title token "
    "tower track train tree user value vehicle version visitor voltage volume wage wall weight "
    "width window winner worker year zone"
)


@dataclass(frozen=True)
class Template:
    """One kind of line. Fields: names x y z, words v w, numbers a < b < c, b1 = b + 1, ...

    ``python`` and ``java`` hold the right line and two plausible wrong ones; the third wrong
    choice of an item is the other language's right line.
    """

    name: str
    specs: tuple[str, ...]
    python: tuple[str, str, str]
    java: tuple[str, str, str]


@dataclass(frozen=True)
class Row:
    """One rendered specification, with its lines in each language, the right one first."""

    template: str
    spec: str
    lines: Mapping[str, tuple[str, ...]]

    def prompt(self, language: str) -> str:
        """Return the prompt, without a trailing blank, as lm-eval requires."""
        return PROMPT[language].format(self.spec)

    def target(self, language: str) -> str:
        """Return the reference answer; starts with the line break that the prompt lacks.

        The line break at its end makes a greedy match mean that the line ends there as well.
        """
        return f"\n{self.lines[language][0]}\n"

    def choices(self, language: str) -> tuple[str, ...]:
        """Return the right line, two wrong ones, and the right line in the other language."""
        other = LANGUAGES[1 - LANGUAGES.index(language)]
        lines = (*self.lines[language], self.lines[other][0])
        return tuple("\n" + line for line in lines)


TEMPLATES = (
    Template(
        "loop below",
        ("loop {x} from {a} up to but not including {b}", "count {x} from {a} while below {b}"),
        ("for {x} in range({a}, {b}):", "for {x} in range({a}, {b1}):", "for {x} in range({b}):"),
        (
            "for (int {x} = {a}; {x} < {b}; {x}++) {{",
            "for (int {x} = {a}; {x} <= {b}; {x}++) {{",
            "for (int {x} = 0; {x} < {b}; {x}++) {{",
        ),
    ),
    Template(
        "loop through",
        ("loop {x} from {a} to {b}, {b} included", "count {x} from {a} up to and including {b}"),
        (
            "for {x} in range({a}, {b} + 1):",
            "for {x} in range({a}, {b}):",
            "for {x} in range({b} + 1):",
        ),
        (
            "for (int {x} = {a}; {x} <= {b}; {x}++) {{",
            "for (int {x} = {a}; {x} < {b}; {x}++) {{",
            "for (int {x} = {a}; {x} >= {b}; {x}++) {{",
        ),
    ),
    Template(
        "loop in steps",
        ("loop {x} from {a} while below {c} in steps of {b}",),
        (
            "for {x} in range({a}, {c}, {b}):",
            "for {x} in range({a}, {b}, {c}):",
            "for {x} in range({a}, {c}):",
        ),
        (
            "for (int {x} = {a}; {x} < {c}; {x} += {b}) {{",
            "for (int {x} = {a}; {x} < {b}; {x} += {c}) {{",
            "for (int {x} = {a}; {x} < {c}; {x}++) {{",
        ),
    ),
    Template(
        "loop down",
        ("count {x} down from {b} while above {a}", "loop {x} backwards from {b} while above {a}"),
        (
            "for {x} in range({b}, {a}, -1):",
            "for {x} in range({a}, {b}):",
            "for {x} in range({b}, {a}):",
        ),
        (
            "for (int {x} = {b}; {x} > {a}; {x}--) {{",
            "for (int {x} = {b}; {x} >= {a}; {x}--) {{",
            "for (int {x} = {b}; {x} > {a}; {x}++) {{",
        ),
    ),
    Template(
        "for each",
        ("go through every number {x} in the list {y}", "for each number {x} of the list {y}"),
        ("for {x} in {y}:", "for {y} in {x}:", "for {x} in range({y}):"),
        ("for (int {x} : {y}) {{", "for (int {y} : {x}) {{", "for (int {x} in {y}) {{"),
    ),
    Template(
        "integer",
        ("set the integer {x} to {a}", "let the integer {x} be {a}"),
        ("{x} = {a}", "{x} == {a}", "{x} = {a1}"),
        ("int {x} = {a};", "int {x} == {a};", "int {x} = {a1};"),
    ),
    Template(
        "text",
        ('set the text {x} to "{w}"', 'let the text {x} be "{w}"'),
        ('{x} = "{w}"', "{x} = {w}", '{w} = "{x}"'),
        ('String {x} = "{w}";', "String {x} = {w};", 'int {x} = "{w}";'),
    ),
    Template(
        "flag",
        ("set the flag {x} to true", "switch the flag {x} on"),
        ("{x} = True", "{x} = true", "{x} = False"),
        ("boolean {x} = true;", "boolean {x} = false;", "boolean {x} = True;"),
    ),
    Template(
        "list",
        ("make a list {x} of the numbers {a}, {b} and {c}", "let {x} hold {a}, {b} and {c}"),
        ("{x} = [{a}, {b}, {c}]", "{x} = [{a}, {b}]", "{x} = {{{a}, {b}, {c}]"),
        (
            "int[] {x} = {{{a}, {b}, {c}}};",
            "int[] {x} = {{{a}, {b}}};",
            "int {x} = [{a}, {b}, {c}];",
        ),
    ),
    Template(
        "print",
        ("print the {x}", "show the {x} on the screen"),
        ("print({x})", 'print("{x}")', "printf({x})"),
        ("System.out.println({x});", 'System.out.println("{x}");', "System.in.println({x});"),
    ),
    Template(
        "append",
        ("append {a} to the list {x}", "put {a} at the end of the list {x}"),
        ("{x}.append({a})", "{a}.append({x})", "{x}.append({a1})"),
        ("{x}.add({a});", "{a}.add({x});", "{x}.add({a1});"),
    ),
    Template(
        "length",
        ("store the length of the text {x} in {y}", "let {y} be the length of the text {x}"),
        ("{y} = len({x})", "{x} = len({y})", "{y} = {x}.len"),
        ("int {y} = {x}.length();", "int {x} = {y}.length();", "int {y} = length({x});"),
    ),
    Template(
        "upper case",
        ("store the text {x} in upper case in {y}", "let {y} be the text {x} in upper case"),
        ("{y} = {x}.upper()", "{y} = {x}.lower()", "{x} = {y}.upper()"),
        (
            "String {y} = {x}.toUpperCase();",
            "String {y} = {x}.toLowerCase();",
            "String {x} = {y}.toUpperCase();",
        ),
    ),
    Template(
        "prefix",
        ("store the first {a} characters of the text {x} in {y}",),
        ("{y} = {x}[:{a}]", "{y} = {x}[{a}:]", "{y} = {x}[:{a1}]"),
        (
            "String {y} = {x}.substring(0, {a});",
            "String {y} = {x}.substring({a});",
            "String {y} = {x}.substring(0, {a1});",
        ),
    ),
    Template(
        "larger",
        ("store the larger of {x} and {y} in the integer {z}",),
        ("{z} = max({x}, {y})", "{z} = min({x}, {y})", "{x} = max({y}, {z})"),
        (
            "int {z} = Math.max({x}, {y});",
            "int {z} = Math.min({x}, {y});",
            "int {x} = Math.max({y}, {z});",
        ),
    ),
    Template(
        "if greater",
        ("if the {x} is greater than {a}", "in case the {x} exceeds {a}"),
        ("if {x} > {a}:", "if {x} >= {a}:", "if {x} < {a}:"),
        ("if ({x} > {a}) {{", "if ({x} >= {a}) {{", "if ({x} < {a}) {{"),
    ),
    Template(
        "if between",
        ("if the {x} is at least {a} and at most {b}",),
        ("if {a} <= {x} <= {b}:", "if {a} < {x} < {b}:", "if {a} <= {x} or {x} <= {b}:"),
        (
            "if ({x} >= {a} && {x} <= {b}) {{",
            "if ({x} > {a} && {x} < {b}) {{",
            "if ({x} >= {a} || {x} <= {b}) {{",
        ),
    ),
    Template(
        "if not",
        ("if the flag {x} does not hold", "unless the flag {x} is set"),
        ("if not {x}:", "if {x}:", "if {x} is None:"),
        ("if (!{x}) {{", "if ({x}) {{", "if ({x} == null) {{"),
    ),
    Template(
        "if both",
        ("if the flags {x} and {y} both hold", "in case {x} and {y} are both set"),
        ("if {x} and {y}:", "if {x} or {y}:", "if {x} not {y}:"),
        ("if ({x} && {y}) {{", "if ({x} || {y}) {{", "if ({x} & {y}) {{"),
    ),
    Template(
        "if missing",
        ("if there is no {x}", "in case the {x} is missing"),
        ("if {x} is None:", "if {x} is not None:", "if {x} = None:"),
        ("if ({x} == null) {{", "if ({x} != null) {{", "if ({x} = null) {{"),
    ),
    Template(
        "while",
        ("repeat while the {x} is below {a}", "as long as the {x} is below {a}"),
        ("while {x} < {a}:", "while {x} <= {a}:", "while {x} > {a}:"),
        ("while ({x} < {a}) {{", "while ({x} <= {a}) {{", "while ({x} > {a}) {{"),
    ),
    Template(
        "function",
        ("define a function {z} of the integers {x} and {y} that gives an integer",),
        ("def {z}({x}, {y}):", "def {z}({x}):", "function {z}({x}, {y}):"),
        (
            "static int {z}(int {x}, int {y}) {{",
            "static int {z}(int {x}) {{",
            "static void {z}(int {x}, int {y}) {{",
        ),
    ),
    Template(
        "error",
        ('fail because of a bad value with the message "{w}"',),
        ('raise ValueError("{w}")', 'raise "{w}"', 'return ValueError("{w}")'),
        (
            'throw new IllegalArgumentException("{w}");',
            'throw "{w}";',
            'return new IllegalArgumentException("{w}");',
        ),
    ),
    Template(
        "return",
        ("return the {x} plus {a}", "give back the sum of the {x} and {a}"),
        ("return {x} + {a}", "return {x} - {a}", "return {x} + {a1}"),
        ("return {x} + {a};", "return {x} - {a};", "return {x} + {a1};"),
    ),
)


def belongs(text: str, split: str) -> bool:
    """Return whether a name, number or word is in ``split``: its SHA-256 as a number in [0, 1)."""
    low, high = SPLITS[split]
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
    return low <= share < high


def snake_case(name: str) -> str:
    """Write ``total price`` as in Python."""
    return name.replace(" ", "_")


def camel_case(name: str) -> str:
    """Write ``total price`` as in Java."""
    first, *rest = name.split()
    return first + "".join(word.capitalize() for word in rest)


def pools(split: str) -> tuple[list[str], list[int], list[str]]:
    """Return names, numbers and words of ``split``."""
    names = [f"{first} {second}" for first in ADJECTIVES.split() for second in NOUNS.split()]
    return (
        [name for name in names if belongs(name, split)],
        [number for number in NUMBERS if belongs(str(number), split)],
        [f"{word}s" for word in NOUNS.split() if belongs(f"{word}s", split)],
    )


def render(template: Template, spec: str, names: dict[str, str], others: dict[str, object]) -> Row:
    """Fill a template: names as English words, in snake case (Python) and camel case (Java)."""
    snake = {field: snake_case(name) for field, name in names.items()} | others
    camel = {field: camel_case(name) for field, name in names.items()} | others
    lines = {
        "python": tuple(line.format(**snake) for line in template.python),
        "java": tuple(line.format(**camel) for line in template.java),
    }
    return Row(template.name, spec.format(**names, **others), lines)


def rows(split: str, run_seed: int) -> Iterator[Row]:
    """Yield distinct rows of ``split`` without end, cycling through the templates."""
    names, numbers, words = pools(split)
    rng = random.Random(run_seed)
    seen: set[str] = set()
    for template in itertools.cycle(TEMPLATES):
        x, y, z = rng.sample(names, 3)
        a, b, c = sorted(rng.sample(numbers, 3))
        others = {"a": a, "b": b, "c": c, "a1": a + 1, "b1": b + 1, "w": rng.choice(words)}
        row = render(template, rng.choice(template.specs), {"x": x, "y": y, "z": z}, others)
        if row.spec not in seen:
            seen.add(row.spec)
            yield row
