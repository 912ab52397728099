"""What jobs ask for, and the hours that missing runs are likely to take."""

import json
import re

import needs
import pytest
import targets
import torch

from mixshare import RunConfig, runs
from mixshare.config import PROFILES
from mixshare.files import project_root

preset = RunConfig.preset


class TestRequests:
    def test_time_and_memory_grow_with_what_costs_them(self):
        small = needs.training_request(preset("digits", device="cpu"))
        for more, time, memory in (
            ({"depth": 40}, True, True),
            ({"width": 8}, True, True),
            ({"epochs": 3000}, True, False),
            ({"dataset": "cifar100"}, True, True),
            ({"batch_size": 1024}, False, True),
            ({"batch_repetition": 4, "epochs": 400}, True, False),
        ):
            large = needs.training_request(preset("digits", device="cpu", **more))
            assert (large.minutes > small.minutes) == time, more
            assert (large.megabytes > small.megabytes) == memory, more

    def test_time_and_memory_double_with_each_attempt(self):
        for config in map(preset, PROFILES):
            for ask, subject in (
                (needs.training_request, config),
                (needs.study_request, [config]),
            ):
                first = ask(subject)
                for attempt, factor in ((2, 2), (3, 4)):
                    wanted = needs.Request(
                        factor * first.minutes, factor * first.megabytes, first.gpu
                    )
                    assert ask(subject, attempt) == wanted

    def test_every_published_run_took_two_thirds_at_most_of_the_time_that_it_asks_for(self):
        shares = {}
        for path in (project_root() / "outputs" / "published").glob("*/*/seed-*/metrics.json"):
            made_by = json.loads(path.read_text())["provenance"]
            fields = json.loads((path.parent / "config.json").read_text())
            # A run may have been made elsewhere than it would ask for.
            device = "cpu" if made_by["device"].startswith("cpu") else "cuda"
            config = RunConfig.from_dict(fields | {"device": device})
            minutes = needs.training_request(config).minutes
            shares[str(path)] = made_by["wall_seconds"] / 60 / minutes
        assert len(shares) > 20 and max(shares.values()) < 2 / 3

    def test_a_gpu_is_asked_for_where_one_core_would_take_hours_or_the_configuration_names_it(self):
        small = [preset(name) for name in PROFILES if name != "paper"]
        assert not any(needs.training_request(config).gpu for config in small)
        assert needs.training_request(preset("paper")).gpu
        assert needs.training_request(preset("smoke", device="cuda")).gpu
        assert not needs.training_request(preset("paper", device="cpu")).gpu
        assert not needs.study_request([preset("paper")]).gpu

    def test_a_chapter_asks_for_more_the_more_runs_it_reads_and_the_larger_they_are(self):
        several = ([preset("paper")], 3 * [preset("paper")], 3 * [preset("digits")])
        minutes = [needs.study_request(configs).minutes for configs in several]
        assert minutes[1] > minutes[0] > minutes[2]
        study = targets.results("paper", ["mimo", "mixshare"], [1, 2])[-2]
        read = [preset("paper", m, s) for m in ("mimo", "mixshare") for s in (1, 2)]
        assert study.request(2) == needs.study_request(read, 2)

    def test_ten_small_runs_share_a_gpu_or_four_of_the_paper_and_none_without_one(
        self, monkeypatch
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        configs = [preset("digits"), preset("paper"), preset("paper", width=32)]
        configs.append(preset("paper", device="cpu"))
        assert [needs.gpu_share(config) for config in configs] == [10, 25, 100, 0]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert needs.gpu_share(preset("paper")) == 0

    def test_a_networks_cost_is_counted_once_and_without_its_weights(self, monkeypatch):
        made = []
        build = runs.build_model
        monkeypatch.setattr(
            runs, "build_model", lambda *given: made.append(build(*given)) or made[-1]
        )
        needs._count.cache_clear()
        for seed in (1, 2):
            for method in ("mimo", "mixshare"):
                needs.training_request(preset("digits", method, seed))
        (model,) = made
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


class TestPlan:
    @pytest.fixture(autouse=True)
    def nothing_published(self, monkeypatch, tmp_path):
        monkeypatch.setattr(needs, "published_folder", lambda: tmp_path / "nothing")

    def test_it_lists_what_is_missing_and_the_hours_by_finished_runs(self, copied):
        finished = [copied("single", 1), copied("mixshare", 1)]
        for run, seconds in zip(finished, (3600.0, 7200.0), strict=True):
            path = run.folder / "metrics.json"
            took = re.sub(r'("wall_seconds": )[0-9.]+', rf"\g<1>{seconds}", path.read_text())
            path.write_text(took)
            runs.write_checksums(run.folder)
        configs = [run.config for run in finished]
        configs += [preset("smoke", method, 2) for method in ("single", "mixshare")]
        *to_train, summary, hours = targets.plan(list(map(targets.training, configs))).splitlines()
        assert to_train == ["to train: single, seed 2", "to train: mixshare, seed 2"]
        # the finished runs lack their chapters alone
        assert summary == "0 of 4 runs and chapters are done; 2 runs to train"
        expected = r"on cpu .*, 1 thread a run: about 3\.0 hours in all, by 2 finished runs"
        assert re.fullmatch(expected, hours)

    def test_a_wider_network_takes_longer_in_proportion_to_its_multiply_adds(self, copied):
        (known,) = needs.finished_runs({copied("mimo", 1).config.dataset})
        narrow, wide = (preset("smoke", "mimo", 1, width=width) for width in (1, 2))
        costs = [needs._cost(config, known.image_shape)[0] for config in (narrow, wide)]
        ratio = costs[1] / costs[0]
        assert 3 < ratio < 4
        assert needs.training_seconds(narrow, [known]) == pytest.approx(known.wall_seconds)
        assert needs.training_seconds(wide, [known]) == pytest.approx(ratio * known.wall_seconds)

    def test_without_a_finished_run_on_the_data_there_is_no_estimate(self, copied):
        (line,) = needs.estimate([preset("digits")])
        assert line == "no estimate: no run on digits has finished yet"
        copied("single", 1)
        (line,) = needs.estimate([preset("digits"), preset("smoke")])
        assert "no estimate, for no run on digits has finished there" in line

    def test_damaged_records_of_finished_runs_are_passed_over(self, copied):
        run = copied("single", 1)
        (run.folder / "metrics.json").write_text("{}")
        assert list(needs.finished_runs({run.config.dataset})) == []
