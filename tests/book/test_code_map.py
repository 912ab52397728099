"""The map from the paper's ideas to code: every name in it exists and is documented."""

import inspect
import pkgutil
import re

from mixshare.config import FIELDS
from mixshare.files import project_root

TEXT = (project_root() / "docs" / "code.md").read_text()
NAMES = sorted(set(re.findall(r"`(mixshare\.[\w.]+)`", TEXT)))
ROWS = [line.strip("| ").split(" | ") for line in TEXT.splitlines() if line.startswith("| ")]
IDEAS = [row for row in ROWS if row[0] != "idea"]


def test_every_name_resolves_to_something_documented():
    assert len(NAMES) > 40
    for name in NAMES:
        assert inspect.getdoc(pkgutil.resolve_name(name)), name


def test_every_field_is_one_of_a_run():
    for row in IDEAS:
        for field in re.findall(r"`(\w+)`", row[3]):
            assert field in FIELDS, row


def test_every_idea_says_where_the_paper_has_it_and_names_code():
    for row in IDEAS:
        assert len(row) == 4 and re.search("appendi|Sec|MixMo|ours", row[1]), row
        assert re.search(r"`mixshare\.", row[2]), row


def test_covers_what_the_appendix_describes():
    ideas = " ".join(row[0].lower() for row in IDEAS)
    wanted = (
        "encoder, classifier, sum, linear, cutmix, fade, box, unmixing, rebalancing, "
        "input repetition, batch repetition, identical, co-linear, kernel alignment, "
        "importance, overlap, null, learning rate, decay, l2, plan, resume, diversity, "
        "ensemble, train/test gap"
    )
    assert not [word for word in wanted.split(", ") if word not in ideas]
