"""Names, colours, dashes and markers: one concept looks and is called the same in every figure and text."""

# Okabe and Ito's palette, which survives the common colour-vision deficiencies.
BLACK, GREY, PALE = "#000000", "#7F7F7F", "#BBBBBB"
BLUE, SKY, GREEN, ORANGE, VERMILION, PURPLE = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"

#: Concept: name in legends, colour, dash, marker. One concept looks the same in every figure.
STYLE = {
    "acc_cot": ("CoT action", VERMILION, "solid", "circle"),
    "acc_prompt": ("prompt action", BLUE, "solid", "square"),
    "acc_empty_think": ("empty-think action", SKY, "dash", "diamond"),
    "acc_elicited": ("elicited prompt action", GREEN, "solid", "diamond"),
    "acc_twin": ("untrained twin, elicited", GREY, "dash", "x"),
    "gap": ("gap (CoT − prompt)", PURPLE, "solid", "circle"),
    "headroom_gap": ("headroom gap (gap / (1 − prompt))", BLACK, "dash", "square"),
    "agreement": ("agreement of prompt and CoT action", BLACK, "solid", "circle"),
    "kappa": ("Cohen's κ", PURPLE, "dash", "square"),
    "revision_helpful": ("helpful (wrong to right)", GREEN, "solid", "circle"),
    "revision_neutral": ("neutral", PALE, "solid", "diamond"),
    "revision_harmful": ("harmful (right to wrong)", ORANGE, "solid", "square"),
    "probe": ("probe (nested layer)", BLUE, "solid", "circle"),
    "majority": ("majority class", GREY, "dash", "line-ew"),
    "previous_action": ("previous action", ORANGE, "solid", "square"),
    "tfidf": ("TF-IDF of prompt", GREEN, "solid", "diamond"),
    "prompt_length": ("prompt length", PURPLE, "dot", "triangle-up"),
    "embedding": ("embedding layer", SKY, "solid", "triangle-down"),
    "shuffled": ("shuffled labels", BLACK, "dot", "x"),
    "random_model": ("random model", GREEN, "dash", "triangle-up"),
    "control_task": ("control task", ORANGE, "dot", "diamond"),
    "lens": ("logit lens", BLACK, "dash", "diamond"),
    "prompt_reliance": ("prompt reliance = direct / (direct + via-CoT)", BLUE, "solid", "square"),
    "direct": ("direct (prompt)", BLUE, "solid", "square"),
    "via_cot": ("via CoT", VERMILION, "solid", "circle"),
    "indirect": ("via CoT: own traces", VERMILION, "solid", "circle"),
    "via_text": ("via CoT: its text", VERMILION, "dash", "triangle-up"),
    "via_state": ("via CoT: its hidden state", ORANGE, "dot", "triangle-down"),
    "total": ("total", BLACK, "solid", "diamond"),
    "interaction": ("interaction", GREY, "dot", "x"),
    "area_action": ("area over the curve, action", VERMILION, "solid", "circle"),
    "area_filler": ("the same after full stops of equal length", GREY, "dot", "x"),
    "area_distribution": (
        "area over the curve, distribution over admissible actions",
        ORANGE,
        "dash",
        "triangle-up",
    ),
    "same_0": ("same action without the trace", BLUE, "solid", "square"),
    "same_25": ("after a quarter", SKY, "dash", "diamond"),
    "same_50": ("after half", GREEN, "dashdot", "triangle-up"),
    "same_75": ("after three quarters", GREY, "dot", "x"),
    "keep": ("keep (own CoT action)", BLUE, "solid", "square"),
    "follow": ("follow (inserted trace's action)", VERMILION, "solid", "circle"),
    "other": ("other action", GREY, "dash", "diamond"),
    "unparsed": ("unparsed", PALE, "dot", "x"),
    "along_probe": ("probe's direction", BLUE, "solid", "circle"),
    "along_orthogonal": ("orthogonal, random", GREY, "dash", "line-ew"),
    "along_unembedding": ("unembedding row", GREEN, "solid", "diamond"),
    "along_shuffled": ("shuffled labels", BLACK, "dot", "x"),
}
for _mode in ("cot", "prompt", "empty_think"):
    STYLE[_mode] = STYLE[f"parse_{_mode}"] = STYLE[f"acc_{_mode}"]

#: What the prompt action is called where the history's traces are left out, as in a game in prompt mode.
NO_TRACES = "prompt_no_history_traces"
#: Metrics of behaviour that no figure draws: their names in tables.
TOLD = {
    "admissible_cot": "CoT action, of the parsed: admissible",
    "admissible_prompt": "prompt action, of the parsed: admissible",
    "admissible_empty_think": "empty-think action, of the parsed: admissible",
    f"acc_{NO_TRACES}": "prompt action, no traces in the history",
    f"parse_{NO_TRACES}": "prompt action, no traces in the history: parses",
    f"admissible_{NO_TRACES}": "prompt action, no traces in the history, of the parsed: admissible",
    f"{NO_TRACES}_difference": "prompt action, no traces in the history − with them",
}
#: Metrics over the decisions at which the prompt and the CoT action both parse: the ending of their names.
PARSED = "_parsed"
TOLD["revision" + PARSED] = "revision, where both parse"
for _metric in ("acc_cot", "acc_prompt", "gap", "headroom_gap", "agreement", "kappa"):
    TOLD[_metric + PARSED] = f"{STYLE[_metric][0]}, where both parse"
for _metric in ("revision_helpful", "revision_neutral", "revision_harmful"):
    TOLD[_metric + PARSED] = f"{STYLE[_metric][0]}, where both parse"

#: What a table calls the decisions that a tuning was stopped by; no split of a study.
HELD_OUT = "held_out"
for _name in ("elicited", "twin"):
    STYLE[f"parse_{_name}"] = STYLE[f"acc_{_name}"]
TOLD["elicited_minus_prompt"] = "elicited − untuned"
TOLD["elicited_minus_twin"] = "elicited − untrained twin"

SPLITS = {"in_domain": "In-domain", "out_of_domain": "Out-of-domain"}
INSERTED_TRACES = {
    "self_splice": "self-splice",
    "truncated": "truncated",
    "other_state": "other state",
    "resampled": "resampled",
    "mistake": "mistake",
    "paraphrase": "paraphrase",
    "shuffled_words": "shuffled words",
    "filler": "filler",
    "empty": "empty",
}
#: What a CoT action rests on.
DIAGNOSES = {
    "post_hoc": "post-hoc (both equal, kept)",
    "overridable": "overridable (both equal, follows)",
    "trace_decided": "trace-decided (differ, follows)",
    "neither": "neither",
}
TOLD |= DIAGNOSES
TOLD |= {
    "names_object": "names the action's object",
    "names_kind": "names the kind of the action's object",
    "spells_action": "spells out the action",
}
#: Spans in reading order, and definitions of a share: their names in figures.
SPANS = {
    "template": "template",
    "task": "task",
    "history": "history",
    "observation": "observation",
    "boundary": "boundary",
    "cot": "CoT",
    "action_tag": "action tag",
    "action": "action",
}
SPAN_COLOURS = {
    "template": GREY,
    "text": SKY,
    "task": GREEN,
    "history": BLUE,
    "observation": ORANGE,
    "boundary": BLACK,
    "cot": VERMILION,
    "action_tag": PURPLE,
    "action": PURPLE,
}
SHARES = {
    "attention": "attention",
    "gradient_value": "gradient, value path",
    "gradient_resid": "gradient, residual",
}
VERSIONS = {"all": "all positions", "sink_free": "first position left out"}
#: Controls that read no activation, of which the best is what a gain is over, and those that do.
CONTROLS = ("majority", "previous_action", "tfidf", "prompt_length")
ACTIVATION_CONTROLS = ("embedding", "random_model", "control_task", "shuffled")
LABELS = {
    "eventual_verb": "eventual action's verb",
    "eventual_target": "eventual action's target",
    "reference_verb": "reference action's verb",
    "reference_target": "reference action's target",
    "eventual_token": "eventual action's telling token",
    "reference_token": "reference action's telling token",
}
STEERED = {
    "boundary": "boundary only",
    "cot": "during the CoT",
    "action": "at the action",
    "everywhere": "everywhere",
}
ALONG = ("probe", "orthogonal", "unembedding", "shuffled")
DIRECTIONS = {"denoise": "Denoise (clean into corrupt)", "noise": "Noise (corrupt into clean)"}
