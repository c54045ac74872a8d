"""What report.html says and looks like: template, style, the reading aid and the captions, in plain language."""

from __future__ import annotations

from study.results.equal_rules import DRAWS
from study.results.importance import TRUSTED_TRIALS

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: superft report</title>
<style>{style}</style>
<script>{plotly}</script>
</head>
<body>
{body}
</body>
</html>
"""

STYLE = """
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: #222;
  max-width: 1240px; margin: 0 auto; padding: 1.5em; }
h1 { font-size: 1.7em; line-height: 1.25; }
h2 { margin-top: 2.2em; border-bottom: 2px solid #0072B2; }
h3 { margin-bottom: .3em; margin-top: 1.8em; }
nav { margin: 1em 0; }
.lead { font-size: 1.1em; }
.note, .caption { color: #555; font-size: .92em; max-width: 62em; }
.aid { background: #f3f7fa; border-left: 4px solid #0072B2; padding: .4em 1.2em; }
.aid h3 { margin-top: .6em; }
.aid dt { font-weight: 600; margin-top: .5em; }
.aid dd { margin-left: 0; }
.wide, .plot { overflow-x: auto; }
.plotly-graph-div { min-width: 760px; }
table { border-collapse: collapse; font-size: .85em; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3em .5em; border-bottom: 1px solid #ddd; vertical-align: top; }
thead th { border-bottom: 2px solid #999; vertical-align: bottom; }
tbody tr:hover { background: #f6f6f6; }
td, .facts th { white-space: nowrap; }
td.words { min-width: 10em; white-space: normal; }
.facts td { white-space: normal; }
.ci { display: block; color: #666; font-size: .92em; }
img { max-width: 100%; }
code, pre { background: #f3f3f3; padding: .1em .3em; }
pre { padding: 1em; overflow-x: auto; }
"""

READING_AID = """
<section class="aid"><h3>How to read this</h3><dl>
<dt>The question</dt><dd>A backdoored model classifies clean images well, but sends every image with a hidden
<i>trigger</i> to the class that the attacker chose. A <i>defense</i> retrains or prunes it. Each <i>trial</i> is one
defense with one choice of settings, measured on test images.</dd>
<dt>Attack success rate (ASR) and clean accuracy</dt><dd>ASR: share of triggered images sent to the attacker's class;
less is better. Clean accuracy: share of clean images classified right; more is better. So in the scatter plots, lower
right is better: backdoor gone, nothing lost.</dd>
<dt>Front, knee</dt><dd>The <i>front</i> of a defense holds its trials that none of its others beats in both. Its
<i>knee</i> is where giving up more accuracy starts to buy little.</dd>
<dt>Search half and report half</dt><dd>The test set is cut in two. The search only ever sees the first half, and the
front, knee and picks are chosen there; every number and point to be read here is from the second, so that lucky
choices do not look better than they are. Dashed lines show what the search saw.</dd>
<dt>Intervals</dt><dd>[a, b] is the 95 % Wilson interval in percent: how far the finite number of test images lets the
value be off. Another seed can differ by more.</dd>
</dl></section>
"""

CAPTION_FRONT = """
<p class="caption">One dot is one trial (its mean, if it ran on several seeds); hover for its settings, status and cost.
Thick: the front on the report half, with 95 % intervals; dashed: the same front as the search saw it. Rings were on
that front, but others beat them on the report half. Stars: published settings. Upright crosses: collapsed models, which
no front takes; slanting crosses: diverged; open circles: the defense abstained and the model is as before. Click a name
in the legend to hide it, double-click to see it alone; drag to zoom. <i>Useful corner</i> enlarges the part with little
ASR and little accuracy lost.</p>
"""
CAPTION_TABLE = """
<p class="caption">All on the report half, except ASR-base and false target rate (full test set). RA: triggered images
given their true class. DER, RIR: reward for ASR lost and RA won, less the accuracy lost; 0.5 is no change, and a
ruined model can score more, so never read them without clean accuracy. ASR-base: what the trigger does to a clean
model. False target rate: untriggered images of other classes sent to the attacker's class after repair. 1 E is the
compute of one training epoch over the attacker's full training set; E of a setting counts what it takes alone, also
where the search found part of it ready made. Abstained: the defense found nothing to repair and returned the model as
it was. Collapsed: the model classifies at most two classes' worth of clean images right, so its ASR is an
accident.</p>
"""
CAPTION_TRIGGER = """
<p class="caption">Test images, the same with the trigger, and the difference times ten; above the true class, below
the class that the attacker wants.</p>
"""
CAPTION_DETECTION = """
<p class="caption">Poison is what to find. Removed: share of the training set that was left out; TPR, FPR: share of the
poisoned and of the clean training images among it; precision: share of poison in what was removed. AUROC, AUPRC: of
the suspicion score over all training images (0.5 and the poison rate are chance). Flagged classes: labels that were
called attacked, with the anomaly index where there is one (above the setting's threshold is suspicious); target found:
whether the attacker's class is among them; false classes: how many others are.</p>
"""
CAPTION_PARITY = f"""
<p class="caption">Hypervolume: the area that a front dominates, between 0 and 1. Corner: the same within ASR below 20 %
and less than 10 points of accuracy lost, scaled to 1. Fronts are chosen on the search half and measured on the report
half. First trials: the first n settings of each search, n being what the shortest has. First E: the settings that each
finished within the same compute per model, which is the budget of the study or else the least that a search took in
all, but never less than the dearest first setting; the first setting, the published one, counts whatever it takes, and
a search that ended before shows all that it has. [a, b]: 95 % percentile interval of {DRAWS:,} draws (fixed seed). Each
draws seeds with replacement, where there are several, and a rate for every count of test images (Jeffreys), the same
luck for all points that were measured on the same images; the choice of the front is not drawn again. With two or
three seeds such an interval is too narrow.</p>
"""
CAPTION_COSTS = """
<p class="caption">What it took to find the settings: sums over all trials of a search, whatever became of them. A
trial is one setting on one model. E is compute as counted in samples. Work of earlier trials, also those of other
studies with the same store, that was taken over (features, retrained models) is charged to a search once; found ready:
what it would have cost beyond that.
Trial-seconds add up the wall time of the trials; GPU-seconds count of each its share of a GPU.</p>
"""
CAPTION_MEMBERS = """
<p class="caption">From least ASR to most accuracy, as chosen on the search half. Points lost are points of clean
accuracy below the model before repair, on the search half. Knee: farthest from the straight line between the front's
two ends. Max DER: greatest DER among settings that lost at most 10 points.</p>
"""
CAPTION_HYPERVOLUME = """
<p class="caption">Hypervolume: the area that the front dominates, between 0 and 1; 1 would be ASR 0 % at accuracy 100
%. A curve that still climbs at its end asks for more trials. The report-half curve may fall, because it follows
choices made on the other half. Dotted: the published settings alone, so what lies above it is what the search
gained. Where many searches share the figure it shows the report half alone.</p>
"""
CAPTION_IMPORTANCE = f"""
<p class="caption">Share of importance per setting; bars of one colour add up to 100 %. ASR and clean accuracy: share
of the variation over all trials that the setting explains (fANOVA). Reaching the front: how much its values differ
between the best trials (the front, or at least the best 10 % by rank) and all (PED-ANOVA). The sampler tries good
regions more often, which colours these numbers; with fewer than {TRUSTED_TRIALS} trials they are hints.</p>
"""
