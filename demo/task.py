"""The demo's made-up task: a role's rubric, one applicant, and the reply a judge should give.

Six kinds of criteria. Each can be shown in an applicant's record plainly (level 0), through an
alias or another unit (level 1), or as a fact to derive or a trap to see through (level 2). What a
sentence looks like depends on the level alone, never on whether it meets the criterion: otherwise
a model learns the length of a list in place of its contents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Literal, Protocol

Kind = Literal["years", "skill", "place", "pay", "degree", "certificate"]
Level = Literal[0, 1, 2]

KINDS: tuple[Kind, ...] = ("years", "skill", "place", "pay", "degree", "certificate")
"""The order of criteria in every rubric and of fields in every reply."""

PROMPT_START = "{rubric}\n\nApplicant:\n"
PROMPT_END = '\n\nVerdict:\n{"verdict":"'
"""Start, applicant, end and reply are tokenized apart: no token spans two of them."""

THIS_YEAR = 2026

SKILLS: dict[str, tuple[str, ...]] = {
    "Kubernetes": ("k8s", "Helm"),
    "Docker": ("Podman", "Buildah"),
    "Python": ("Django", "pandas"),
    "Java": ("Spring", "Maven"),
    "Go": ("Golang", "gofmt"),
    "Rust": ("Cargo", "Tokio"),
    "PostgreSQL": ("Postgres", "psql"),
    "MySQL": ("MariaDB", "InnoDB"),
    "AWS": ("EC2", "Lambda"),
    "Azure": ("Entra", "Bicep"),
    "Terraform": ("OpenTofu", "tfstate"),
    "Ansible": ("playbooks", "AWX"),
    "Kafka": ("Redpanda", "ksqlDB"),
    "Spark": ("PySpark", "Databricks"),
    "Linux": ("Debian", "systemd"),
    "accounting": ("bookkeeping", "ledgers"),
    "SAP": ("ABAP", "HANA"),
    "Excel": ("spreadsheets", "VBA"),
    "Figma": ("wireframes", "prototypes"),
    "Photoshop": ("retouching", "Lightroom"),
    "logistics": ("freight", "shipping"),
    "welding": ("TIG", "soldering"),
    "teaching": ("lessons", "tutoring"),
    "law": ("contracts", "litigation"),
}
SKILL_GROUPS: dict[str, tuple[str, ...]] = {
    "a relational database": ("PostgreSQL", "MySQL"),
    "a public cloud": ("AWS", "Azure"),
    "a systems language": ("Go", "Rust"),
    "infrastructure as code": ("Terraform", "Ansible"),
    "data pipelines": ("Kafka", "Spark"),
    "containers": ("Kubernetes", "Docker"),
    "design tools": ("Figma", "Photoshop"),
}
CITIES: dict[str, tuple[str, ...]] = {
    "Sweden": ("Malmo", "Uppsala"),
    "Norway": ("Oslo", "Bergen"),
    "Germany": ("Munich", "Hamburg"),
    "France": ("Lyon", "Nantes"),
    "Spain": ("Madrid", "Seville"),
    "Italy": ("Rome", "Turin"),
    "Japan": ("Tokyo", "Osaka"),
    "India": ("Pune", "Delhi"),
    "Canada": ("Toronto", "Calgary"),
    "Brazil": ("Recife", "Manaus"),
    "Kenya": ("Nairobi", "Mombasa"),
    "Ghana": ("Accra", "Kumasi"),
}
REGIONS: dict[str, tuple[str, ...]] = {
    "Scandinavia": ("Sweden", "Norway"),
    "western Europe": ("Germany", "France"),
    "southern Europe": ("Spain", "Italy"),
    "Asia": ("Japan", "India"),
    "the Americas": ("Canada", "Brazil"),
    "Africa": ("Kenya", "Ghana"),
}
DEGREES: tuple[tuple[str, ...], ...] = (
    ("no degree", "self taught", "left school early"),
    ("bachelor", "BSc", "undergraduate degree"),
    ("master", "MSc", "graduate degree"),
    ("doctorate", "PhD", "DPhil"),
)
CERTIFICATES: dict[str, tuple[str, ...]] = {
    "PMP": ("project management title",),
    "CISSP": ("infosec title",),
    "CPA": ("auditor title",),
    "ITIL": ("service title",),
    "CCNA": ("Cisco associate",),
    "ADR": ("dangerous goods licence",),
}
ROLES = (
    *("data engineer", "backend developer", "site engineer", "analyst", "accountant", "designer"),
    *("planner", "team lead", "support agent", "technician", "buyer", "controller", "researcher"),
    *("web developer", "operator", "consultant", "teacher", "driver", "editor", "manager"),
)
FIRST_NAMES = (
    *(
        "Mira",
        "Jonas",
        "Ada",
        "Luis",
        "Wei",
        "Nora",
        "Omar",
        "Lena",
        "Ivan",
        "Tara",
        "Hugo",
        "Aiko",
    ),
    *("Emil", "Sara", "Noah", "Priya", "Karl", "Ines", "Yuki", "Max", "Rosa", "Finn", "Leila"),
    *("Otto", "Amara", "Kofi", "Elin", "Pablo", "Zofia", "Dina"),
)
LAST_NAMES = (
    *("Okafor", "Lind", "Weber", "Rossi", "Tanaka", "Silva", "Novak", "Haas", "Iyer", "Moreau"),
    *("Berg", "Castro", "Dahl", "Park", "Singh", "Costa", "Meyer", "Olsen", "Duran", "Kim"),
    *("Mensah", "Kamau", "Ortega", "Fischer", "Larsen", "Bianchi"),
)
REMARKS = (
    *("Enjoys hiking.", "Plays chess.", "Sings in a choir.", "Volunteers on weekends."),
    *("Quick learner.", "Likes early shifts.", "Prefers small teams.", "Works well alone."),
    *("Has a driving licence.", "Speaks at meetups.", "Reads history.", "Bakes bread."),
    *("Keeps bees.", "Writes clear reports.", "Calm under pressure.", "Open to travel."),
    *("Led a team of {count}.", "Available in {count} weeks.", "Wrote {count} articles."),
    *("Refers to {count} clients.", "Worked on {count} projects.", "Speaks {count} languages."),
    *("Moved house {count} times.", "Ran {count} marathons.", "Trained {count} juniors."),
    *("Found the last two jobs through {employer}.", "Once met the founder of {employer}."),
    *("Gives notice of {count} weeks at {employer}.", "Won {count} prizes with a team of {size}."),
    *("Answers mail within {count} hours, calls within {size}.", "Reads {count} books a year."),
)
OTHERS_FACTS = (
    *(
        "Partner has {count} years of work.",
        "Partner lives in {city}.",
        "Partner works with {skill}.",
    ),
    *("Partner earns {pay}k.", "Sister holds {degree}.", "Brother is certified: {certificate}."),
    *("{employer} is {count} years old.", "Managed a budget of {pay}k.", "Visited {city} twice."),
    *("{employer} sells {skill} courses.", "Boss lives in {city}.", "Boss holds {degree}."),
    *("Boss has used {skill} for {count} years.", "Sister moved from {city} to {other_city}."),
    *("{employer} closed its office in {city}.", "Partner asks {pay}k, earns {other_pay}k."),
)
"""True of somebody else, or of no matter here: a reader who only spots words is misled."""


def dice(seed: int) -> Random:
    """The only source of chance in the demo; equal seeds give equal draws."""
    return Random(seed)


@dataclass(frozen=True, slots=True)
class Difficulty:
    """How demanding rubrics and records are; the defaults are the demo's own."""

    levels: tuple[float, float, float] = (0.35, 0.35, 0.30)
    """Share of levels 0, 1 and 2."""
    longest_list: int = 4
    unasked: float = 0.8
    """Share of the kinds missing from the rubric that a record speaks about all the same."""
    unsaid: float = 0.0
    """Share of unmet criteria on which a record is silent; what is unsaid is not met."""
    asides: tuple[int, int] = (7, 12)
    """Fewest and most sentences that settle nothing."""

    def level(self, random: Random) -> Level:
        return random.choices((0, 1, 2), self.levels)[0]


class Criterion(Protocol):
    """One thing that a role needs."""

    @property
    def text(self) -> str: ...

    def sentence(self, random: Random, met: bool, level: Level, difficulty: Difficulty) -> str:
        """What a record says when its applicant meets this criterion, or does not."""


@dataclass(frozen=True, slots=True)
class Years:
    """So many years of work, whatever the employers."""

    least: int
    text: str

    @classmethod
    def draw(cls, random: Random, difficulty: Difficulty) -> "Years":
        least = random.randint(3, 10)
        wordings = (f"at least {least} years of experience", f"{least} or more years of work")
        return cls(least, random.choice(wordings))

    def sentence(self, random: Random, met: bool, level: Level, difficulty: Difficulty) -> str:
        years = self._years(random, met)
        if level == 0:
            return random.choice((f"{years} years of experience.", f"{years} years of work."))
        if level == 1:
            since = f"In the field since {THIS_YEAR - years}."
            return random.choice((f"{years * 12} months of work.", since))
        first = random.randint(1, years - 1)
        former, later = random.sample(LAST_NAMES, 2)
        end = random.randint(THIS_YEAR - 4, THIS_YEAR - 1)
        return random.choice(
            (
                f"{first} years at {former} and {years - first} years at {later}.",
                f"Worked from {end - years} to {end}.",
                f"{random.randint(9, 13)} years of school, {years} years of work.",
            )
        )

    def _years(self, random: Random, met: bool) -> int:
        """Never below 2, so that every number can be split into two jobs."""
        if met:
            return self.least + random.choice((0, 0, 1, 2, 3, 4, 5))
        return random.randint(max(2, self.least - 5), self.least - 1)


@dataclass(frozen=True, slots=True)
class Skill:
    """A skill that is used, not wished for."""

    accepted: tuple[str, ...]
    text: str

    @classmethod
    def draw(cls, random: Random, difficulty: Difficulty) -> "Skill":
        return cls.named(random.choice(tuple(SKILL_GROUPS)), random.choice(("has used", "knows")))

    @classmethod
    def named(cls, name: str, verb: str) -> "Skill":
        """A group of skills, of which one is enough."""
        return cls(SKILL_GROUPS[name], f"{verb} {name}")

    def sentence(self, random: Random, met: bool, level: Level, difficulty: Difficulty) -> str:
        target = random.choice(self.accepted)
        length = random.randint(min(2, difficulty.longest_list), difficulty.longest_list)
        lacked, *known = random.sample([s for s in SKILLS if s not in self.accepted], length + 1)
        shown = [_skill_shown(random, skill, random.random() < 0.4) for skill in known]
        if met:
            shown[random.randrange(length)] = _skill_shown(random, target, level > 0)
        sentence = random.choice(("Skills: ", "Works with ", "Uses ")) + ", ".join(shown) + "."
        if level < 2:
            return sentence
        wish = _skill_shown(random, lacked if met else target, random.random() < 0.5)
        wording = random.choice(("No {} yet.", "Wants to learn {}.", "Never used {}."))
        return f"{sentence} {wording.format(wish)}"


def _skill_shown(random: Random, skill: str, by_alias: bool) -> str:
    return random.choice(SKILLS[skill]) if by_alias else skill


@dataclass(frozen=True, slots=True)
class Place:
    """Where the applicant lives now, or an attitude that makes up for it."""

    accepted: tuple[str, ...]
    instead: str
    """The sentence that makes up for living elsewhere; empty where nothing does."""
    text: str

    ATTITUDES: ClassVar = ("Remote only.", "Ready to move.", "Office only.", "Stays put.")
    INSTEAD: ClassVar = {
        "": "",
        "Remote only.": " or remote",
        "Ready to move.": " or ready to move",
    }

    @classmethod
    def draw(cls, random: Random, difficulty: Difficulty) -> "Place":
        instead = random.choice(("", "", "Remote only.", "Ready to move."))
        return cls.named(random.choice(tuple(REGIONS)), instead)

    @classmethod
    def named(cls, name: str, instead: str) -> "Place":
        return cls(REGIONS[name], instead, f"based in {name}{cls.INSTEAD[instead]}")

    def sentence(self, random: Random, met: bool, level: Level, difficulty: Difficulty) -> str:
        attitude = random.random() < 0.7
        elsewhere = bool(met and attitude and self.instead and random.random() < 0.5)
        home = self._country(random, inside=met and not elsewhere)
        former = self._country(random, inside=not met)
        sentence = _residence(random, home, former, level)
        if not attitude:
            return sentence
        if elsewhere:
            return f"{sentence} {self.instead}"
        ruled_out = None if met else self.instead
        return f"{sentence} {random.choice([a for a in self.ATTITUDES if a != ruled_out])}"

    def _country(self, random: Random, *, inside: bool) -> str:
        return random.choice([c for c in CITIES if (c in self.accepted) is inside])


def _residence(random: Random, home: str, former: str, level: Level) -> str:
    if level == 0:
        return f"Lives in {home}."
    city, former_city = random.choice(CITIES[home]), random.choice(CITIES[former])
    if level == 1:
        return f"Lives in {city}."
    return random.choice(
        (
            f"Born in {former_city}, lives in {city}.",
            f"Lives in {city}, born in {former_city}.",
            f"Moved from {former_city} to {city}.",
        )
    )


@dataclass(frozen=True, slots=True)
class Pay:
    """What is asked for, not what is earned now."""

    most: int
    """Thousands a year."""
    text: str

    @classmethod
    def draw(cls, random: Random, difficulty: Difficulty) -> "Pay":
        most = random.randrange(48, 109, 12)
        return cls(most, random.choice((f"asks for at most {most}k", f"salary up to {most}k")))

    def sentence(self, random: Random, met: bool, level: Level, difficulty: Difficulty) -> str:
        step = random.choice((3, 6, 12, 18))
        asked = self.most - random.choice((0, step)) if met else self.most + step
        if level == 0:
            return random.choice((f"Asks {asked}k.", f"Salary wish {asked}k."))
        if level == 1:
            return random.choice((f"Asks {asked},000 a year.", f"Hopes for {asked}k before tax."))
        # The ceiling is whole thousands a month, so rounding away from it keeps the truth.
        monthly = asked // 12 if met else -(-asked // 12)
        earned = max(24, asked + random.choice((-12, 12)))
        return random.choice(
            (
                f"Asks {monthly}k a month.",
                f"Earns {earned}k, asks {asked}k.",
                f"Asks {asked}k, earns {earned}k.",
            )
        )


@dataclass(frozen=True, slots=True)
class Degree:
    """The highest degree that was finished."""

    least: int
    """Index into `DEGREES`."""
    text: str

    @classmethod
    def draw(cls, random: Random, difficulty: Difficulty) -> "Degree":
        least = random.randint(1, 3)
        name = DEGREES[least][0]
        return cls(least, random.choice((f"{name} or higher", f"at least a {name}")))

    def sentence(self, random: Random, met: bool, level: Level, difficulty: Difficulty) -> str:
        held = random.randint(self.least, 3) if met else random.randint(0, self.least - 1)
        shown = DEGREES[held][0] if level == 0 else random.choice(DEGREES[held][1:])
        if level < 2:
            return random.choice((f"Holds {shown}.", f"Education: {shown}."))
        started = random.choice(DEGREES[random.choice([n for n in (1, 2, 3) if n != held])][1:])
        return random.choice(
            (f"Holds {shown}, dropped out of {started}.", f"Started {started}, holds {shown}.")
        )


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that is held and has not expired."""

    name: str
    text: str

    @classmethod
    def draw(cls, random: Random, difficulty: Difficulty) -> "Certificate":
        name = random.choice(tuple(CERTIFICATES))
        return cls(name, random.choice((f"valid {name} certificate", f"{name} certified")))

    def sentence(self, random: Random, met: bool, level: Level, difficulty: Difficulty) -> str:
        others = random.sample([name for name in CERTIFICATES if name != self.name], 2)
        held = self.name if met else others[0]
        shown = held if level == 0 else random.choice(CERTIFICATES[held])
        if level < 2:
            pair = [shown, others[1]]
            random.shuffle(pair)
            return random.choice((f"Certified: {shown}.", f"Certified: {', '.join(pair)}."))
        missed = others[1] if met else self.name
        missed = random.choice((missed, *CERTIFICATES[missed]))
        return random.choice(
            (
                f"Certified: {shown}, {missed} (expired).",
                f"Certified: {missed} (expired), {shown}.",
                f"Certified: {shown}. Preparing for {missed}.",
            )
        )


CRITERION: dict[Kind, type[Years | Skill | Place | Pay | Degree | Certificate]] = {
    "years": Years,
    "skill": Skill,
    "place": Place,
    "pay": Pay,
    "degree": Degree,
    "certificate": Certificate,
}


@dataclass(frozen=True, slots=True)
class Role:
    """A role's title and what it needs, in the order of `KINDS`."""

    title: str
    needs: Mapping[Kind, Criterion]

    @property
    def rubric(self) -> str:
        return f"Role: {self.title}. Needs: {'; '.join(c.text for c in self.needs.values())}."


@dataclass(frozen=True, slots=True)
class Record:
    """One applicant in words, with where its truth stands."""

    name: str
    title: str
    resume: str
    met: Mapping[Kind, bool]
    levels: Mapping[Kind, Level]
    """Levels of the criteria that the record speaks about."""
    settled: Mapping[Kind, int]
    """Offset in `text` where the sentence ends that settles a criterion."""

    @property
    def text(self) -> str:
        return f"{self.name}, {self.title}. {self.resume}"

    @property
    def fits(self) -> bool:
        return all(self.met.values())

    @property
    def difficulty(self) -> int:
        """Sum of the levels of the asked criteria: 0 is all plain."""
        return sum(self.levels.values())


def draw_role(random: Random, criteria: int, difficulty: Difficulty) -> Role:
    """A role with that many criteria of different kinds."""
    kinds = set(random.sample(KINDS, criteria))
    needs = {kind: CRITERION[kind].draw(random, difficulty) for kind in KINDS if kind in kinds}
    return Role(random.choice(ROLES), needs)


def draw_hard_truth(random: Random, kinds: Sequence[Kind]) -> dict[Kind, bool]:
    """Half meet everything; of the others, most lack exactly one thing."""
    if random.random() < 0.5:
        return dict.fromkeys(kinds, True)
    lacking = 1 if random.random() < 0.6 else random.randint(1, len(kinds))
    lacked = set(random.sample(kinds, lacking))
    return {kind: kind not in lacked for kind in kinds}


def draw_record(
    random: Random, role: Role, met: Mapping[Kind, bool], difficulty: Difficulty
) -> Record:
    """An applicant for whom exactly the criteria marked in `met` hold."""
    levels: dict[Kind, Level] = {}
    parts: list[tuple[Kind | None, str]] = []
    for kind, criterion in role.needs.items():
        if not met[kind] and random.random() < difficulty.unsaid:
            parts.append((None, draw_aside(random)))
            continue
        levels[kind] = difficulty.level(random)
        parts.append((kind, criterion.sentence(random, met[kind], levels[kind], difficulty)))
    parts.extend(
        (None, _unasked_sentence(random, kind, difficulty))
        for kind in KINDS
        if kind not in role.needs and random.random() < difficulty.unasked
    )
    parts += [(None, draw_aside(random)) for _ in range(random.randint(*difficulty.asides))]
    random.shuffle(parts)
    name = f"{random.choice(FIRST_NAMES)} {random.choice(LAST_NAMES)}"
    return _assembled(name, random.choice(ROLES), parts, met, levels)


def _assembled(
    name: str,
    title: str,
    parts: list[tuple[Kind | None, str]],
    met: Mapping[Kind, bool],
    levels: Mapping[Kind, Level],
) -> Record:
    settled: dict[Kind, int] = {}
    end = len(f"{name}, {title}.")
    for kind, sentence in parts:
        end += 1 + len(sentence)
        if kind:
            settled[kind] = end
    return Record(name, title, " ".join(s for _, s in parts), met, levels, settled)


def _unasked_sentence(random: Random, kind: Kind, difficulty: Difficulty) -> str:
    criterion = CRITERION[kind].draw(random, difficulty)
    return criterion.sentence(random, random.random() < 0.5, difficulty.level(random), difficulty)


def draw_aside(random: Random) -> str:
    """A sentence that settles no criterion."""
    wording = random.choice(REMARKS if random.random() < 0.5 else OTHERS_FACTS)
    return wording.format(
        count=random.randint(2, 14),
        size=random.randint(2, 14),
        city=_city(random),
        other_city=_city(random),
        skill=random.choice(tuple(SKILLS)),
        pay=random.randrange(30, 127, 3),
        other_pay=random.randrange(30, 127, 3),
        degree=random.choice(random.choice(DEGREES[1:])),
        certificate=random.choice(tuple(CERTIFICATES)),
        employer=random.choice(LAST_NAMES),
    )


def _city(random: Random) -> str:
    return random.choice(random.choice(tuple(CITIES.values())))


def reply(record: Record) -> str:
    """The right reply, from its first verdict word on: what follows `PROMPT_END`."""
    answers = [("verdict", record.fits), *record.met.items()]
    body = ",".join(f'"{field}":"{"yes" if met else "no"}"' for field, met in answers)
    return ("{" + body + "}").removeprefix('{"verdict":"')
