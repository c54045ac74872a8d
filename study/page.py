"""What report.html says and looks like: template, style, the reading aid and the captions, in plain language."""

from __future__ import annotations

from study.importance import TRUSTED_TRIALS

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
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85em; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3em .5em; border-bottom: 1px solid #ddd; vertical-align: top; }
thead th { border-bottom: 2px solid #999; vertical-align: bottom; }
tbody tr:hover { background: #f6f6f6; }
td, .facts th { white-space: nowrap; }
td.words { min-width: 10em; white-space: normal; }
.facts td { white-space: normal; }
.ci { display: block; color: #666; font-size: .92em; }
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
<dt>Front, knee</dt><dd>The <i>front</i> holds the trials that no other trial beats in both. Its <i>knee</i> is where
giving up more accuracy starts to buy little.</dd>
<dt>Search half and report half</dt><dd>The test set is cut in two. The search only ever sees the first half, and the
front, knee and picks are chosen there; every number and point to be read here is from the second, so that lucky
choices do not look better than they are. Dashed lines show what the search saw.</dd>
<dt>Intervals</dt><dd>[a, b] is the 95 % Wilson interval in percent: how far the finite number of test images lets the
value be off. Another seed can differ by more.</dd>
</dl></section>
"""

CAPTION_FRONT = """
<p class="caption">One dot is one trial (its mean, if it ran on several seeds); hover for its settings, status and
cost. Thick: the front on the report half, with 95 % intervals; dashed: the same front as the search saw it. Rings
were on that front, but others beat them on the report half. Stars: published settings. Click a name in the legend to
hide it, double-click to see it alone; drag to zoom. <i>Useful corner</i> enlarges the part with little ASR and little
accuracy lost.</p>
"""
CAPTION_TABLE = """
<p class="caption">All on the report half, except RA before repair and ASR-base (full test set). RA: triggered images
given their true class. DER, RIR: reward for ASR lost and RA won, less the accuracy lost; 0.5 is no change, and a
ruined model can score more, so never read them without clean accuracy. ASR-base: what the trigger does to a clean
model. False target rate: untriggered images of other classes sent to the attacker's class after repair. 1 E is the
compute of one training epoch over the attacker's full training set.</p>
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
gained.</p>
"""
CAPTION_IMPORTANCE = f"""
<p class="caption">Share of importance per setting; bars of one colour add up to 100 %. ASR and clean accuracy: share
of the variation over all trials that the setting explains (fANOVA). Reaching the front: how much its values differ
between the best trials (the front, or at least the best 10 % by rank) and all (PED-ANOVA). The sampler tries good
regions more often, which colours these numbers; with fewer than {TRUSTED_TRIALS} trials they are hints.</p>
"""
