"""The frame of report.html: its HTML shell, its style sheet and its few lines of script."""

from __future__ import annotations

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
<script>{script}</script>
</body>
</html>
"""

STYLE = """
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: #222; background: #fff;
  max-width: 1240px; margin: 0 auto; padding: 1.5em; overflow-wrap: break-word; }
h1 { font-size: 1.7em; line-height: 1.25; margin: .3em 0; }
h2 { margin-top: 2.2em; border-bottom: 2px solid #0072B2; line-height: 1.3; }
h3 { margin-bottom: .3em; margin-top: 1.8em; }
a { color: #00558a; }
nav { margin: 1em 0; }
.lead { font-size: 1.08em; max-width: 62em; }
.lead li { margin: .3em 0; }
.note, .caption { color: #505050; font-size: .92em; max-width: 62em; }
.aid { background: #f3f7fa; border-left: 4px solid #0072B2; padding: 0 1.2em .2em; }
.aid dt { font-weight: 600; margin-top: .5em; }
.aid dd { margin-left: 0; }
details { margin: .8em 0; }
summary { cursor: pointer; padding: .35em 0; color: #00558a; font-weight: 600; }
summary:hover { text-decoration: underline; }
section > details { border-top: 1px solid #ddd; margin: 0; }
section > details:last-child { border-bottom: 1px solid #ddd; }
.wide, .plot { overflow-x: auto; max-width: 100%; }
.plot .plotly-graph-div { width: 100%; }
table { border-collapse: collapse; font-size: .85em; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3em .5em; border-bottom: 1px solid #ddd; vertical-align: top; }
thead th { border-bottom: 2px solid #999; vertical-align: bottom; }
tbody tr:hover { background: #f6f6f6; }
td, .facts th { white-space: nowrap; }
td.words { min-width: 10em; white-space: normal; }
td.long { min-width: 24em; white-space: normal; }
.wide:not(.matrix) td:first-child, .wide:not(.matrix) thead th:first-child { position: sticky; left: 0;
  background: #fff; }
.facts td { white-space: normal; }
.ci { display: block; color: #555; font-size: .92em; }
.matrix { width: max-content; max-width: 100%; margin: 1em 0; }
.matrix table { border-collapse: separate; border-spacing: 2px; }
.matrix th, .matrix td { border: 0; padding: .2em .45em; text-align: center; vertical-align: middle; }
.matrix th { font-weight: 600; line-height: 1.25; }
.matrix th small { font-weight: 400; color: #505050; }
.matrix th[scope=row], .matrix thead th:first-child { position: sticky; left: 0; background: #fff; text-align: left;
  z-index: 1; white-space: nowrap; }
.matrix td { padding: 0; width: 4.9em; min-width: 4.9em; border-radius: 4px; overflow: hidden; vertical-align: top;
  background: #f4f4f4; }
.matrix td span { display: block; padding: .1em .2em; color: #111; }
.matrix td.void { background: repeating-linear-gradient(45deg, #efefef 0 6px, #e2e2e2 6px 12px); color: #222;
  white-space: normal; line-height: 1.2; font-size: .85em; vertical-align: middle; width: 5.76em; }
.matrix td.void span { padding: 0 .2em; }
.matrix td.plain span { background: #f4f4f4; }
.matrix td small { display: block; color: #333; font-size: .85em; line-height: 1.15; padding: .1em .3em .2em;
  white-space: normal; max-width: 11.5em; margin: 0 auto; }
.legend { font-size: .9em; max-width: 62em; margin: .3em 0; }
.legend span { display: inline-block; padding: 0 .5em; margin: .1em .1em; border-radius: 3px; color: #111; }
.legend .void { background: repeating-linear-gradient(45deg, #efefef 0 6px, #e2e2e2 6px 12px); }
img { max-width: 100%; height: auto; }
code, pre { background: #f3f3f3; padding: .1em .3em; overflow-wrap: anywhere; }
pre { padding: 1em; overflow-x: auto; }
@media (max-width: 640px) {
  body { padding: .8em; font-size: 15px; }
  h1 { font-size: 1.35em; }
  .lead { font-size: 1em; }
  ul { padding-left: 1.2em; }
  td.words:first-child { min-width: 8em; max-width: 8em; }
}
"""

# Plots carry both of their layouts (figures.style.fit); a plot in a folded part has no width until that is opened.
SCRIPT = """
(function () {
  function fit(plot) {
    var width = plot.clientWidth, two = (plot.layout || {}).meta;
    if (!width || !two || !two.narrow || plot.dataset.width === String(width)) { return; }
    plot.dataset.width = width;
    var narrow = width < two.below, columns = Math.max(1, Math.floor((width - 62) / two.widest));
    function lay(legend) {  // with so many pixels for the legend below the plot
      var change = Object.assign({width: width}, narrow ? two.narrow : two.wide);
      if (narrow && two.entries) {
        change.height += legend;
        change['margin.b'] += legend;
        change['legend.maxheight'] = legend + 4;
        change['legend.y'] = legend / change.height;
      }
      plot.style.height = plot.parentElement.style.height = change.height + 'px';
      return Plotly.relayout(plot, change);
    }
    var guess = 20 * Math.ceil(two.entries / columns) + 12;
    lay(guess).then(function () {  // Plotly knows better, once it has drawn it
      var real = ((plot._fullLayout || {}).legend || {})._height;
      if (narrow && real && Math.abs(real + 8 - guess) > 10) { lay(Math.ceil(real) + 8); }
    });
  }
  function fitAll(part) { part.querySelectorAll('.plotly-graph-div').forEach(fit); }
  function reveal() {
    var part = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!part) { return; }
    for (var at = part; at; at = at.parentElement) { if (at.tagName === 'DETAILS') { at.open = true; } }
    part.scrollIntoView();
  }
  document.addEventListener('toggle', function (event) { fitAll(event.target); }, true);
  document.addEventListener('click', function (event) {
    var link = event.target.closest ? event.target.closest('a[href="' + location.hash + '"]') : null;
    if (link && location.hash) { reveal(); }  // the same link again, after its part was closed by hand
  });
  window.addEventListener('hashchange', reveal);
  window.addEventListener('resize', function () { fitAll(document); });
  window.addEventListener('beforeprint', function () {
    document.querySelectorAll('details').forEach(function (one) { one.open = true; });
  });
  fitAll(document);
  reveal();
})();
"""
