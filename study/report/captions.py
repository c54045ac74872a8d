"""The words of report.html: the reading aid and the captions, in plain language.

One word, one meaning: a *setting* is one choice of values for all *parameters* of a defense; a *trial* is one run of a
setting on one backdoored model.
"""

from __future__ import annotations

from study.results.importance import LEAST_RESAMPLED, MOST_RESAMPLED, RESAMPLES, TRUSTED_TRIALS
from study.results.intervals import DRAWS

E_WORDS = "1 E is the compute of one training epoch over the attacker's full training set"

READING_AID = f"""
<div class="aid"><dl>
<dt>The question</dt><dd>A backdoored model classifies clean images well, but sends every image with a hidden
<i>trigger</i> to the class that the attacker chose. A <i>defense</i> retrains or prunes the model to remove the
backdoor. How much of the backdoor goes, and how much accuracy goes with it?</dd>
<dt>Attack success rate (ASR) and clean accuracy</dt><dd>ASR is the share of triggered images that the model sends to
the attacker's class; less is better. Clean accuracy is the share of clean images that it classifies right; more is
better. So in the scatter plots, lower right is better: backdoor gone, nothing lost.</dd>
<dt>Setting, trial, search</dt><dd>A <i>setting</i> is one choice of values for all parameters of a defense. A
<i>trial</i> is one run of a setting on one backdoored model. A <i>search</i> tries many settings of one defense. The
<i>published</i> setting is the one that the authors of the defense state; it is tried first, unless the study
leaves it out.</dd>
<dt>Front, knee</dt><dd>The <i>front</i> of a search holds the settings that no other setting of that search beats in
both numbers. Its <i>knee</i> is where giving up more accuracy starts to buy little.</dd>
<dt>Search half and report half</dt><dd>The test set is cut in two. The search only ever sees the first half: the
front, the knee and the picks are chosen there. The numbers on this page are from the second half unless they say
otherwise, so that settings that were lucky with the images do not look better than they are. Both halves are of the
same trained models: luck of a training stays, and <code>search.confirm</code> asks fresh models.</dd>
<dt>Intervals</dt><dd>[a, b] is a 95 % interval in percent: how far the value may be off because only so many attackers
(seeds) were tried, and because there are only so many test images. Of one attacker it knows of the images alone:
another seed can differ by more. Two attackers tell so little of their spread that their interval is wider.</dd>
<dt>E</dt><dd>The unit of compute: {E_WORDS}.</dd>
</dl></div>
"""

CAPTION_FRONT = f"""
<p class="caption">One dot is one setting (its mean, if it ran on several seeds); hover over it, or tap it, for its
parameters, status and cost in E ({E_WORDS}). Thick line: the front on the report half, with 95 % intervals. Dashed
line: the same front as the search saw it. Hollow marks were on that front, but others beat them on the report half.
Stars: published settings. Upright crosses: collapsed models, which are on no front. Slanting crosses: training
diverged. Open circles: the defense abstained and the model is as before. Click a name in the legend to hide it,
double-click to see it alone; drag to zoom. The button <i>Useful corner</i> enlarges the part with little ASR and little
accuracy lost.</p>
"""
CAPTION_TABLE = f"""
<p class="caption">All numbers are from the report half, except ASR-base and false target rate (full test set).
<b>RA</b> (robust accuracy): share of triggered images that get their true class. <b>DER</b>, <b>RIR</b>: one number
that rewards ASR lost (DER) or RA won (RIR), less the clean accuracy lost; 0.5 is no change. A ruined model can score
more, so never read them without clean accuracy. <b>ASR-base</b>: the ASR of the trigger on a model that was never
attacked. <b>False target rate</b>: share of clean images of other classes that the repaired model sends to the
attacker's class. <b>E</b>: {E_WORDS}; the E of a setting counts all that it needs, also where the search found part of
it ready made. <b>Abstained</b>: the defense found nothing to repair and returned the model as it was. <b>Collapsed</b>:
the model has all but stopped classifying, so its ASR is an accident.</p>
"""
CAPTION_TRIGGER = """
<p class="caption">Test images, the same images with the trigger, and the difference times ten. Above each: its true
class; below: the class that the attacker wants.</p>
"""
CAPTION_DETECTION = """
<p class="caption">To be found: the poison in the training set, or the attacked class. <b>Removed</b>: share of the
training set that was left out. <b>TPR</b>, <b>FPR</b>: share of the poisoned and of the clean training images that were
left out. <b>Most TPR at this share</b>: what the best of all detectors would reach by leaving out as many images, and
<b>at these shares of the classes</b>: as many of every class as this detector did. A TPR is read against these: where
more than half of the attacked class is poison, who leaves out 15 % of every class cannot find much of it.
<b>Precision</b>: share of poison in what was left out. <b>AUROC</b>, <b>AUPRC</b>: how well the suspicion score ranks
poison above clean (chance is 0.5 and the share of poison). <b>Within the target class</b> is what a detector is
judged by; over all classes a score gains by telling classes apart. Both are missing where no image of the target class
is poisoned. <b>Flagged classes</b>:
classes that were called attacked, with the anomaly index where there is one (suspicious above the threshold of the
setting). <b>Target found</b>: whether the attacker's class is among them. <b>False classes</b>: how many others
are.</p>
"""
CAPTION_PARITY = f"""
<p class="caption"><b>Hypervolume</b>: the area that a front dominates, between 0 and 1; more is better.
<b>Corner</b>: the same within the corner that matters, ASR below 20 % and less than 10 points of accuracy lost, scaled
to 1. Fronts are chosen on the search half and measured on the report half. <b>First settings</b>: each search cut to
as many settings as the shortest has; one with fewer than half of the longest is not compared so (–). <b>First E</b>:
each search cut to the settings that it finished within the same compute per model ({E_WORDS}). That limit is the budget
of the study, or else the least that any search took in all, but never less than the dearest first setting. A published
setting that alone costs more than the budget is not counted there; a search that ended earlier shows all that it
has. <b>[a, b]</b>: 95 % interval, over the attackers (Student's, from the areas with one attacker left out) and over
the test images ({DRAWS:,} draws of plausible rates given their counts, with the same luck for all settings and models,
which were measured on the same images). Of one attacker it knows of the images alone. The front is not chosen again.
Searches that overlap here cannot be told apart. An area takes at each ASR the best of several settings, so that a
front of many settings comes out larger than one of few, by chance: by 0.02 to 0.03, and by 0.1 in the corner, where
all settings are equal and test images are a few hundred.</p>
"""
CAPTION_RULES = """
<p class="caption">The same settings, and of them the front by the means over the attacks and that of the worst case.
Each front is chosen on the search half by its own rule, and its settings are judged here on the report half by
both.</p>
"""
CAPTION_REPEATS = """
<p class="caption">Each search was made several times with other draws of its sampler, on the same models. <b>[a,
b]</b>: 95 % interval of the mean over the searches (Student's t). It is the luck of the search alone: the models and
the test images are the same for all of them, so seeds and images add their own. All else on this page is of the first
search, which no result has chosen. Fronts are chosen on the search half, and measured on the report half.</p>
"""
CAPTION_CONFIRMED = """
<p class="caption">Settings of the front, with knee and picks, run again on attack seeds that the search never saw.
<b>Confirmed less searched</b>: the mean over the settings (the winner's curse: of many settings the luckiest are
chosen, so ASR tends to be higher and accuracy lower here), in points. <b>[a, b]</b>: 95 % interval over the fresh seeds
(Student's t, a seed left out at a time); what the search measured is taken as it is, and the luck of its own seeds is
part of the difference. All on the report half. Fresh seeds without a backdoor and failed runs do not count; a model
that collapsed or diverged counts as ASR 100 % at accuracy 0 %. These runs enter no front and no other number of this
page but the time and the failures.</p>
"""
CAPTION_COSTS = f"""
<p class="caption">What it took to find the settings: sums over all trials of a search, whatever became of them.
<b>E</b>: {E_WORDS}, counted in training images. Work of earlier trials that was taken over ready made (features,
retrained models; also from other studies with the same store) is charged to a search once; <b>found ready</b> is what
it would have cost beyond that. <b>Trial-seconds</b> add up the wall time of the trials; <b>GPU-seconds</b> count of
each trial its share of a GPU.</p>
"""
CAPTION_MEMBERS = """
<p class="caption">From least ASR to most accuracy, as chosen on the search half. Points lost are points of clean
accuracy below the model before repair, on the search half. <b>Knee</b>: farthest from the straight line between the
front's two ends. <b>Max DER</b>: greatest DER among settings that lost at most 10 points. <b>Trial</b>: the name of the
setting in trials.csv and front.csv.</p>
"""
CAPTION_HYPERVOLUME = """
<p class="caption">Hypervolume is the area that the front dominates, between 0 and 1; 1 would be ASR 0 % at accuracy 100
%. A curve that still climbs at its end asks for more settings. The curve of the report half may fall, because it
follows choices made on the other half. Dotted: the published setting alone. What lies above it is not all gain: an area
takes the best of several settings at each ASR, and with settings that are equal in truth and a few hundred test images
that alone adds 0.02 to 0.03. Where many searches share the figure, it shows the report half alone.</p>
"""
CAPTION_IMPORTANCE = f"""
<p class="caption">Share of importance of each parameter; bars of one colour add up to 100 %. ASR and clean accuracy:
share of the variation over all settings that the parameter explains (fANOVA). Reaching the front: how much its values
differ between the best settings (the front, or at least the best 10 % by rank) and all (PED-ANOVA). The sampler tries
good regions more often, which colours these numbers; with fewer than {TRUSTED_TRIALS} settings they are hints.
Whiskers, with {LEAST_RESAMPLED} to {MOST_RESAMPLED} settings: where the share lies in 90 % of {RESAMPLES} resamples of
the settings (bootstrap; of fANOVA the single trees of its forest, each of which has one). A parameter that only some
settings have has no bar: it is judged among those, below.</p>
"""
