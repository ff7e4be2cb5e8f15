"""The options that users choose by name, as shown in menus and quoted in messages."""

# criterion
SCORE = "score"
NOVELTY = "novelty"
BOTH = "both"
NOVELTY_JUDGE = " (novelty)"  # ends the label of a judge that reports novelty; web/js/chart.js knows it too

# target: its share of the reference
TARGETS = {"none": None, "1 in 5": 0.2, "1 in 20": 0.05, "1 in 100": 0.01}

# gradient_path
DENOISER_CONSTANT = "denoiser constant"
THROUGH_DENOISER = "through denoiser"

# decoder
FULL = "full"
ENCODER_RESOLUTION = "encoder resolution"
TINY = "tiny autoencoder"
TINY_OR_SMALL = "tiny autoencoder, else encoder resolution"
DECODERS = (FULL, ENCODER_RESOLUTION, TINY, TINY_OR_SMALL)

# denoiser_calls
TWO_CALLS = "two"
ONE_CALL = "one"

# range_finder
TRACKED = "tracked"
TRACKED_HALF = "tracked in half precision"
COLD = "cold"

# schedule
CONSTANT = "constant"
VARIANCE = "variance"

# strength_rule
SPREAD = "spread"
PER_STEP = "per_step"

# normalisation
MAX = "max"
RMS = "rms"
NONE = "none"

# criterion, mode, fit: as the rest asks for
AUTO = "auto"

# fit
SQUASH = "squash"
CROP = "crop"

# mode of a score; the others are named in jepa_core/reference.py
TOP_K = "top-k"
PROJECTED = "projected"

# keep
RAREST = "rarest"
TYPICAL = "most typical"

# on_timeout of a pick
KEEP_FIRST = "keep the first"
STOP = "stop"

# ask of a pick
ASK_ONCE = "once"
ASK_ALWAYS = "at every run"

# floor_kind, threshold_kind
NO_FLOOR = "none"
FLOOR_VALUE = "value"
FLOOR_PERCENTILE = "percentile"
FLOORS = (NO_FLOOR, FLOOR_VALUE, FLOOR_PERCENTILE)

# variety
NO_VARIETY = "none"
CONDITIONING_NOISE = "noise on the conditioning (CADS)"
BOOSTED_START = "boosted start (Boost-and-Skip)"
VARIETIES = (NO_VARIETY, CONDITIONING_NOISE, BOOSTED_START)

# palette
HEAT = "heat"
SEA = "sea"
DUSK = "blue to yellow"
GREY = "grey"

# nodes whose patches of a MODEL other nodes find there
JEPA_GUIDANCE = "JEPA Guidance"
SELF_GUIDED = "Self-Guided Minority Sampling"
MINORITY_PROMPT = "MinorityPrompt"
BOOST = "Boost-and-Skip"
CADS = "CADS"
