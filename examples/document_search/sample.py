"""Sample users and documents."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from cenote import PgVectorStore

from . import documents
from .embedding import MODEL, embed
from .models import Passage, User

TEAMS = {"harbour": ["Ann", "Bo"], "observatory": ["Cleo"]}

DOCUMENTS = {
    ("Ann", "Mooring a boat"): """\
Come in against the wind or the current, whichever is stronger. Put the fenders out before you are
near the quay, and have the bow and stern lines ready in your hands.

First make fast the line that holds the boat against the wind. Then add the springs: they run
forward from the stern and aft from the bow, and keep the boat from surging along the quay.

Leave slack where the tide falls. A boat that hangs in its lines at low water has been moored by
somebody who looked at the clock and not at the tide table.
""",
    ("Ann", "Reading a tide table"): """\
A tide table gives the times and heights of high and low water for one port. Heights are above the
chart datum, so they are added to the depths on the chart.

Springs come shortly after new and full moon, and have the largest range. Neaps come at the quarters
of the moon, and have the smallest.

According to the rule of twelfths, the water rises one twelfth of its range in the first hour, two
in the second, three in the third and the fourth, two in the fifth, and one in the sixth.
""",
    ("Bo", "Care of ropes"): """\
Rinse ropes with fresh water at the end of the season: salt crystals cut the fibres from within.
Dry them in the shade, as sunlight makes nylon brittle.

Whip or melt the ends before they fray. A rope that has turned stiff, or is thinner in one place
than in others, does not hold what it once held; cut it up for lashings.
""",
    ("Cleo", "Finding the Andromeda galaxy"): """\
Look for the great square of Pegasus in autumn. From its north-eastern corner follow two stars
of Andromeda, then turn right for two fainter ones; the smudge beside the second is the galaxy.

Its light has been on the way for two and a half million years. Averted vision helps: look a little
past it, where the eye is more sensitive to faint light.
""",
    ("Cleo", "The phases of the moon"): """\
The moon takes twenty-nine and a half days from one new moon to the next. At first quarter it stands
high in the south at sunset; the full moon rises when the sun sets.

Observe craters along the terminator, the line between day and night on the moon, where shadows are
long. At full moon there are hardly any shadows, and the surface looks flat.
""",
}


async def add_sample_documents(engine: AsyncEngine) -> None:
    """Add the sample users and documents, unless the database has users already."""
    store = PgVectorStore(engine, model=Passage, embedding_model=MODEL)
    async with AsyncSession(engine) as session, session.begin():
        if await session.scalar(select(User).limit(1)):
            return
        users = {name: User(name=name, team=team) for team in TEAMS for name in TEAMS[team]}
        session.add_all(users.values())
        for (owner, title), text in DOCUMENTS.items():
            vectors = embed(documents.split(text))
            await documents.add(session, store, users[owner], title, text, vectors)
