"""What a router says of itself: where its data come from, how it was made, what it cannot do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flowray.routing.training import Trained

# Sets whose outcomes weights may be shipped with, and what their licences ask to be said.
LICENCES: Mapping[str, Mapping[str, str]] = {
    "llmrouter_mix": {
        "licence": "MIT",
        "source": "ulab-uiuc/LLMRouter, commit 4e7a796942ce26e9d5f2b93191c7c2585c99c2e3",
        "credit": "prompts of GSM8K, MATH, MBPP, HumanEval, MMLU, ARC, OpenBookQA, CommonsenseQA, Natural Questions, "
        "TriviaQA, CommonGen, MGSM and AgentVerse, under terms of their own",
    },
    "mmlu_pro_matrix": {
        "licence": "Apache-2.0",
        "source": "TIGER-AI-Lab/MMLU-Pro, commit f418b116db00b065c2aea046518d8fcf74d39872",
    },
    "routellm_pairs": {
        "licence": "Apache-2.0",
        "source": "lm-sys/RouteLLM, commit 0b64fdafe049e596a3f5657c219329f24af24198",
    },
    "intent_clinc150": {
        "licence": "CC BY 3.0",
        "source": "clinc/oos-eval, commit 828f8093932c8fe6ca7936c3d2e52903b1c523de",
        "credit": "Larson et al., An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction, "
        "EMNLP-IJCNLP 2019",
    },
}

LIMITS = (
    "Probabilities of success rest on the agents' own past: without any, all agents get the same.",
    "Texts are read as n-grams of mostly English questions; of other kinds of text the traits (length, numbers, code, "
    "tools) and the agents' past on like tasks decide, and the residual of the network is scaled down by what it was "
    "worth on that past.",
    "Seconds and dollars are regressed on the agents' past alone: no set that weights may be trained on records them.",
    "The live load of an agent is not an input: no public data records it.",
    "The models of the training data are of 2023 to 2025.",
)


# How exactly the same command makes the same weights again, by what they were trained on.
REMADE: Mapping[str, str] = {
    "cpu": "bit for bit with the same seed on the same machine; elsewhere sums are rounded otherwise",
    "cuda": "to rounding: a GPU adds in another order each time; bit for bit on the CPU alone",
}


def described(trained: Trained) -> dict[str, Any]:
    """The header of an artifact, and its card."""
    network = trained.network
    return {
        "network": network.config.as_dict(),
        "parameters": sum(values.numel() for values in network.parameters()),
        "training": asdict(trained.config),
        "remade": REMADE[trained.config.device],
        "data": {
            name: {"sha256": digest, **LICENCES.get(name, {"licence": "of its owner"})}
            for name, digest in trained.digests.items()
        },
        "val": {step.phase: dict(step.val) for step in trained.progress if step.val},
        "temperature": float(network.temperature),
        "seconds": round(trained.seconds, 1),
        "limits": LIMITS,
    }
