"""The tasks of scripts/reproduce.py that measure navigation: houses, the agent's eyes, and three agents."""

from __future__ import annotations

from reproduce_tasks import Figure, Task, evaluate, train

_FOLDER, _HOUSES = "{R}/navigation", "{R}/navigation/houses"
_EYES = f"init.weights={_FOLDER}/eyes/model.safetensors"
_AGENTS = {
    "video": "",
    "no_video": "model.overrides.use_video=false",
    "blind": "model.overrides.use_video=false settings.blind=true",
}


_BEFORE = (
    (
        f"{_HOUSES}/val_unseen.json.gz",
        f"internvideo navigation-world {_HOUSES} --scenes 120 --episodes 3000 --validation 1000 --by-motion 1",
    ),
    train("waypoints", "navigation/eyes", _HOUSES),
)
"""What the agents share: made by the first of them."""


def _agent(name: str, about: str) -> Task:
    """Train an agent and walk 1,000 episodes of unseen houses with it."""
    folder = f"navigation/{name}"
    figure = f"{{R}}/{folder}_walks/navigation.json"
    return Task(
        about,
        (
            *_BEFORE,
            train("navigation", folder, _HOUSES, _EYES, _AGENTS[name]),
            evaluate("navigation", f"{{R}}/{folder}", _HOUSES, f"{folder}_walks", "--split val_unseen"),
        ),
        {f"navigation_{name}": Figure(f"{figure}:SR", f"success of {about}", f"{figure}:random: SR", "random steps")},
    )


def _gain(first: str, second: str) -> tuple[str, str]:
    """The command of the paired difference of two agents, and its file."""
    made = f"{_FOLDER}/{first}_over_{second}.json"
    return made, (
        f"python scripts/navigation_gain.py {_FOLDER}/{first}_walks/navigation.npz "
        f"{_FOLDER}/{second}_walks/navigation.npz -o {made}"
    )


NAVIGATION: dict[str, Task] = {
    "navigation_no_video": _agent("no_video", "the agent without video feature"),
    "navigation_blind": _agent("blind", "the agent that cannot read"),
    "navigation_video": _agent("video", "the agent with video feature"),
    "navigation_claims": Task(
        "navigation: what reading and what the video feature are worth, paired over ways",
        (_gain("no_video", "blind"), _gain("video", "no_video")),
        {
            f"navigation_{name}": Figure(f"{_FOLDER}/{pair}.json:{key}", about, base, beside)
            for name, pair, key, about, base, beside in (
                ("reading", "no_video_over_blind", "SR", "success, reading minus not reading", 0.15, "asked"),
                ("gain", "video_over_no_video", "SR", "success, video feature minus none", 0.0, "no difference"),
                ("gain_motion", "video_over_no_video", "SR_told_by_motion", "the same where motion tells the goal",
                 0.0, "no difference"),
            )
        },
        ("navigation_no_video", "navigation_blind", "navigation_video"),
    ),
}  # fmt: skip
"""Tasks of navigation by name, in the order in which they are run."""
