"""The report's fixed words: the question, the terms and the limits; they say nothing that a table could contradict."""

#: What is asked, and why.
QUESTION = (
    "Agents made of language models are trained to write a <i>chain of thought</i> (a <i>trace</i>) before they act, and that makes them"
    " better. But a better agent need not be one that thinks better. The gain can land in two places. It can land <b>in the trace</b>: "
    "what is written there becomes better, and the action follows what is written. Or it can land <b>in what the prompt alone "
    "predicts</b>: training teaches the action itself, it is as good as settled before the first word of the trace, and the trace comes "
    "with it.",
    "The two look alike from outside, and they matter for different reasons. Where the trace decides, reading it is a way to watch over "
    "the agent, and changing it changes what the agent does. Where the prompt decides, a trace can be plausible and beside the point, "
    "and could as well be left out. So the same agent is measured at several checkpoints of its training, from outside (what it does "
    "with and without its trace) and from inside (what its activations hold, and which of them its action uses).",
)
#: Terms, the tables that each is needed for (one of which is there; always where none is named), and what they mean.
TERMS = (
    ("Decision", ("behaviour", "environments", "masking"),
     "a moment in a recorded episode at which the agent has to act: all that it has seen so far, and the action that an expert took "
     "there."),
    ("Checkpoint", (),
     "the agent as it was after so many steps of training; the first is the model before its chain-of-thought training, unless said "
     "otherwise."),
    ("Prompt boundary", (),
     "the last token of the prompt, before any word of the trace. What the agent knows before it thinks, it knows here or earlier."),
    ("CoT action and prompt action", ("behaviour", "environments", "masking"),
     "the action behind the agent's own trace; and the action where it has to act at once, because the mark that opens an action is put "
     "right behind the boundary. Both are compared with the expert's; the <i>gap</i> is the first's agreement less the second's."),
    ("In-domain and out-of-domain", (),
     "episodes that training did not see, of the kinds of task that it did; and of kinds of task that it never saw solved."),
    ("Games", ("online", "online_official", "environments"),
     "the agent plays in the environment itself until it wins or its steps are up, with its trace and without."),
    ("Probe", ("probes", "environments", "masking"),
     "a linear classifier that is fitted to the activations at the boundary to tell which action the agent will go on to take. Its "
     "<i>gain</i> is what it gets right beyond the best of four guesses that see no activations: the commonest action, the previous one,"
     " the words of the prompt, its length."),
    ("Codelength", ("mdl",),
     "how many bits it takes to send the actions to come, to one who has the activations, or the prompt's words, or neither; a gain at "
     "little data shows here first."),
    ("Patching", ("patching", "masking"),
     "the states of a run on a twin prompt (two names swapped, so that another action is right) are copied into the run on the prompt, "
     "at one place. 0: the action is not moved; 1: it becomes the other run's in full. A probe says what is there, a patch what is used."),
    ("Prompt reliance", ("reliance", "environments", "masking"),
     "two ways to the action are told apart by giving each the states of a twin prompt, in which two names are swapped: the prompt's own"
     " states, and those of the trace. Reliance is the direct way's share of both."),
    ("Conflicting traces", ("conflict", "environments", "masking"),
     "behind its own prompt the agent is given a trace that is not its own: does it keep its action, or follow the trace? Also nothing, "
     "full stops, or its own trace, as a check."),
    ("Early answering", ("early",),
     "the agent's own trace is cut short: how much of it is needed to get its action?"),
    ("Shares", ("shares",),
     "how much of the action's attention and gradient goes to the trace, over the trace's share of the tokens."),
    ("Steering", ("steering",),
     "the direction that the probe found is added to the states: does the action go where it points?"),
    ("Masking", ("masking", "masking_power"),
     "arms of training in which a share k of the examples has no loss on the action's tokens; beside them arms in which as many other "
     "tokens have none."),
    ("Interval", (),
     "in brackets, 95 %, from resampling whole episodes (and, for arms of training, seeds). A reading is said to <i>rise</i> or "
     "<i>fall</i> where the interval of the difference between the last checkpoint and the first excludes 0; it is put together from "
     "both intervals (Newcombe 1998), as if they were of different decisions, which is strict."),
)
#: Limits of every report; of a study of one series.
LIMITS = (
    "<i>Does not clearly change</i> is no proof that nothing changed: the intervals say how much could have been missed. They are not "
    "corrected for the number of readings on this page, so of many nulls a few will look like effects.",
)
LIMITS_OF_A_SERIES = (
    "But for arms of masking, one training run is studied: the intervals are over episodes, and say nothing of other runs with another "
    "seed, other data or another size of model.",
    "Decisions are the expert's states. An action that differs from the expert's counts as wrong even where it would have worked; only "
    "whole games settle that.",
)
#: What is known of the series that ship, by the end of their folder's path.
LIMITS_OF_SHIPPED = {
    "interp/data/series":
        "The agent is very small and was trained on an expert's traces, which name the thing or place to act on in most steps and "
        "sometimes the whole action. A trace that decides the action is therefore expected; what the series can show is whether training"
        " moves the decision into the prompt. Larger models can differ.",
    "smollm2/series":
        "The agent is a small pretrained chat model, tuned with low-rank updates on an expert's traces, which name the thing or place to"
        " act on in most steps: a trace that decides the action is expected.",
}
#: Where ALFWorld's decisions are of generated games.
GENERATED = (
    "The decisions are of generated games with ALFWorld's rules, engine and floor plans, and sampled placements: scores on them are not "
    "ALFWorld scores.")
#: Limits of single instruments, by table.
LIMITS_OF = {
    "probes":
        "Probes are linear and read one token: what they do not find may be there in another form, or elsewhere.",
    "patching":
        "Patching and prompt reliance swap two names in a prompt, with traces and actions of the expert held fixed: they say how those "
        "names matter, not everything else in the prompt.",
    "conflict":
        "Conflicting traces show what a trace can do, not what the agent's own traces do.",
    "masking":
        "Of an arm with few seeds an interval over seeds is wide, and of one seed there is none: then the result is an illustration. "
        "Contrasts beside the claim's are described, not tested.",
    "environments":
        "Each series is one training run, shorter and on fewer decisions than ALFWorld's. A series that learned nothing of an "
        "environment can only show a floor there.",
    "calibration":
        "The agents of the calibration take one step each in a tiny world, with short traces: an instrument that is right on them can "
        "still be wrong on a large model.",
}
