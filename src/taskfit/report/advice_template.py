"""All sentences of advice, as a Jinja template.

A macro is a paragraph, left out where it says nothing; a line break in it is a space.
"""

TEMPLATE = """
{# Of many methods the first part says how many there are; the details name all. #}
{% macro few(names) %}{{ joined(names) if names|length <= 3 else names|length }}{% endmacro %}

{% macro recommendation() %}
{% set best = choice.best %}
{% set evidence %}
{{ metric }} {{ num(taken.score) }} (95 % interval {{ span(taken.interval) }}) on
{{ count(choice.num_examples, "text") }} of {{ facts.in_domain }},
{{ count(choice.draws|length, "draw") }}.
{% endset %}
{% if not recommended %}
No method keeps the limits; the nearest miss is {{ named(taken) }}: {{ times_over(taken) }}.
It has {{ evidence }}
{% else %}
Take {{ named(taken) }}: {{ evidence }}
{% if best.method != taken.method %}
{{ best.method }} scores {{ num(best.score) }}, higher by {{ by(to_best) }}, which is
not beyond chance (adjusted {{ p_value(to_best.adjusted_p_value) }}).
{% endif %}
{% if majority and choice.candidates|length > 1 %}
No method {{ "within the limits" if facts.limits }}
beats the majority class beyond chance.
{% endif %}
{% endif %}
{% endmacro %}

{% macro costs() %}
Its fastest run took {{ format_cost("train_seconds", taken.train_seconds) }}
{{- " and " ~ format_cost("memory_bytes", taken.memory_bytes) ~ " of memory at its peak"
   if taken.memory_bytes }}
{{- "; a text takes " ~ format_cost("latency_seconds", taken.latency_seconds)
   if taken.latency_seconds }}.
{% if saves and recommended and not majority and choice.best.method != taken.method %}
{{ taken.method }} {{ saves }} than {{ choice.best.method }}:
{{ format_cost(choice.saves, taken[choice.saves]) }} instead of
{{ format_cost(choice.saves, choice.best[choice.saves]) }}.
{% endif %}
{% if recommended %}
{% for entry in facts.excluded if (entry.gain_interval or [0])[0] > 0 %}
{% if loop.first %}
Without the limits {{ entry.method }} would score {{ num(entry.gain) }}
({{ span(entry.gain_interval) }}) higher; {{ times_over(entry) }}.
{% endif %}
{% endfor %}
{% endif %}
{% endmacro %}

{% macro baselines() %}
{% if beaten %}
It beats {{ joined(beaten) }}.
{% endif %}
{% for name, found in to_baselines if not (found.worse or majority) %}
{% if found.worse_alone %}
It is ahead of {{ name }} by {{ by(-found) }}: beyond chance if this were the only comparison, but
not as one of {{ num_pairs }} (adjusted {{ p_value(found.adjusted_p_value) }}).
{% else %}
It is not significantly different from {{ name }}: a difference of {{ by(-found) }}.
{% endif %}
{% endfor %}
{% if taken.kind == "tfidf" and others %}
So nothing here shows that a pretrained model is worth its cost.
{% elif taken.kind in ("majority", "tfidf") or ("tfidf" in facts.kinds_run and not tfidf) %}
{# no pretrained model is recommended, or the limits exclude what to compare it with #}
{% elif not tfidf %}
TF-IDF was not run, so whether a pretrained model is needed at all is open.
{% elif tfidf.worse %}
So a pretrained model is worth it here.
{% elif tfidf.worse_alone %}
So it is likely, but not shown, that a pretrained model is worth its cost; more draws would tell.
{% else %}
So it is not shown that a pretrained model is worth its cost.
{% endif %}
{% if others and not majority %}
Of the {{ count(others|length, "other") }},
{{ "it beats " ~ few(beaten_others) if beaten_others }}
{{- "; " if beaten_others and equal_others }}
{{- few(equal_others) ~ (" is" if equal_others|length == 1 else " are")
   ~ " not significantly different from it" if equal_others }}.
{% endif %}
{% set share = choice.most_common_label_share %}
{% if "majority" not in facts.kinds_run and share is not none and facts.metric == "accuracy" %}
The majority class was not compared; one label alone would reach {{ num(share) }},
{{ "below its interval." if taken.interval[0] > share
   else "so nothing here shows that it does better." }}
{% endif %}
{% endmacro %}

{% macro missed() %}
{% set shown = facts.missed[:3] %}
{% if facts.missed and not majority %}
Of the texts that are
{% for one in shown %}
{{ one.label }} it finds {{ num(one.recall) }}
{{- " (" ~ one.most ~ " most, " ~ num(one.most_recall) ~ ")" if one.most }}
{{- ", of " if not loop.last }}
{%- endfor %}
{{- ", and as little of " ~ count(facts.missed|length - 3, "other label")
   if facts.missed|length > 3 }}.
{% if facts.metric == "accuracy" %}
Accuracy hardly shows that: where such labels matter, judge these runs by macro F1
(`taskfit report FOLDER --metric macro_f1`), or train with method.class_weights=balanced.
{% endif %}
{% endif %}
{% endmacro %}

{% macro domains() %}
{% set there = facts.out_of_domain %}
{% set found = there.comparison %}
{% set lead = found.differences|selectattr("method", "==", found.best)|first|default(none) %}
{% set loss = there.losses.get(taken.method) %}
{% set score = found.scores|selectattr("method", "==", taken.method)|first %}
{% if majority and not (lead and lead.significant) %}
Out of domain no method beats it beyond chance either.
{% else %}
Out of domain ({{ count(there.num_examples, "text") }} of {{ joined(there.sets) }}) it reaches
{{ num(score.mean) }} ({{ span(score.interval) }})
{%- if loss %}, {{ lost(loss) }}
{%- endif %}
{{- "; none scores higher there" if found.differences and not lead }}.
{% if lead %}
There {{ lead.method }} holds up best, {{ by(lead) }} higher; that is
{% if lead.significant %}
beyond chance (adjusted {{ p_value(lead.adjusted_p_value) }}), so prefer it where the data are
different.
{% else %}
not beyond chance.
{% endif %}
{% endif %}
{% endif %}
{% endmacro %}

{% macro labels() %}
{% set found = facts.labels.by_method.get(taken.method) %}
{% if majority %}
{% elif not found or not taken.num_labels %}
{{ taken.method }} uses no labels, so more of them would not change it.
{% elif found.gains[0].gain is none %}
Whether more labels would help cannot be known. {{ found.gains[0].reason }}
{% else %}
{{ {HELPS: "More labels would help", LITTLE: "More labels would bring little"}.get(
   found.gains[-1].verdict, "Whether more labels would help is open") }}:
its learning curve gains {% for gain in found.gains %}{{ num(gain.gain) }}
({{ span(gain.interval) }}) at {{ "{:,}".format(gain.n_then|int) }}
{{ "and " if not loop.last }}{% endfor %}
labels.
{{ found.gains[0].reason or "" }}
{% if facts.labels.num_back_tests %}
On this data, forecasts from the smaller sizes were right within their intervals in
{{ facts.labels.num_covered }} of {{ count(facts.labels.num_back_tests, "case") }}.
{% endif %}
{% endif %}
{% endmacro %}

{% macro confidence() %}
{% set found = facts.abstention %}
{% if found and not found.promised %}
No threshold of confidence promises even {{ num(0.5) }} right answers.
{% elif found and found.promised.coverage >= 1 %}
No threshold of its confidence promises more than answering everything.
{% elif found %}
{% set kept, other = found.promised, found.elsewhere %}
{% if kept.wanted_precision < found.wanted_precision %}
These texts cannot promise a precision of {{ num(found.wanted_precision) }}.
{% endif %}
To keep at least {{ num(kept.wanted_precision) }} of its answers right (at 95 % confidence), let it
answer from a probability of {{ "%.3f"|format(kept.threshold|round(3, "ceil")) }}:
{{ "%.0f"|format(100 * kept.coverage) }} % of the texts, {{ num(kept.precision) }} right here.
{% if other and other.num_answered %}
Out of domain that gives {{ num(other.precision) }} right ({{ span(other.interval) }}) on
{{ "%.0f"|format(100 * other.coverage) }} % of the texts.
{% elif other %}
Out of domain it then answers nothing.
{% endif %}
{% endif %}
{% if facts.calibration and facts.calibration.in_domain and not majority %}
Its confidence {{ trust(facts.calibration.in_domain) }}
{{- "; out of domain it " ~ trust(facts.calibration.elsewhere) if facts.calibration.elsewhere }}.
{% endif %}
{% endmacro %}

{% macro limits() %}
{% if facts.excluded %}
The limits ({{ joined(allowed) }}) exclude, with the difference of the score to the
{{ "recommended method" if recommended else "nearest miss" }}: {{ joined(excluded) }}.
{% elif facts.limits %}
The limits exclude nothing.
{% endif %}
{% endmacro %}

{% macro methods() %}
{% if not recommended %}
{% elif choice.candidates|length < 2 %}
Only one method could be compared.
{% else %}
In domain, by {{ metric }}, with the time of its fastest whole run: {{ joined(scores) }}.
{{ taken.method }} is
{{ "not significantly different from " ~ joined(equal) if equal
   else "significantly different from all others" }}.
Differences are paired, by {{ "McNemar's exact test"
   if choice.against_best.differences[0].test == "mcnemar" else "a bootstrap over examples"
   if choice.draws|length == 1 else "a bootstrap over draws and examples" }};
p-values are Holm's over all pairs, intervals 95 % and unadjusted.
Of the methods that are not significantly different from the best and score at most {{ CLOSE }}
less, the one with the least time is taken, then the least memory, then the lowest latency, unless
something cheaper that the best beats is as good as it.
{% endif %}
{% endmacro %}

{% macro domain_details() %}
Scores of {{ taken.method }} out of domain: {{ joined(by_set) }}.
{% if facts.out_of_domain.rank_correlation is not none %}
The order of methods in and out of domain agrees with a rank correlation (Kendall) of
{{ num(facts.out_of_domain.rank_correlation) }}.
{% endif %}
{% endmacro %}

{% macro label_details() %}
{% if verdicts %}
At four times the labels: {{ verdicts|join("; ") }}. Worth while is a gain of 0.01 or more.
{% endif %}
{% endmacro %}

{% macro calibration() %}
Calibration error (ECE) of {{ taken.method }}:
{% for key, found in facts.calibration.items() if found %}
{{ "in domain" if key == "in_domain" else "out of domain" }} {{ "%.3f"|format(found.ece) }}
(chance alone gives up to {{ "%.3f"|format(found.ece_by_chance) }}), log loss
{{ num(found.log_loss) }} against {{ num(found.log_loss_of_frequencies) }} for always giving the
labels' shares{{ "." if loop.last else ";" }}
{% endfor %}
{% endmacro %}

{% macro unknown() %}
{% set u = facts.unknown %}
{% set more = " (the most a method has is " ~ u.most_draws
   ~ ", but the comparison needs draws that all have)" if u.most_draws > u.num_draws else "" %}
{% if u.num_draws == 1 %}
There is one draw of training texts to compare{{ more }}: what another draw would change is unknown
and in none of the intervals.
{% elif u.num_draws < 5 %}
There are only {{ u.num_draws }} draws{{ more }}, which say little about their own spread.
{% endif %}
{% if u.resolution is not none and u.num_examples < 2000 %}
With {{ count(u.num_examples, "text") }} to evaluate on and {{ count(u.num_draws, "draw") }},
differences below about {{ num(u.resolution) }} cannot be seen.
{% endif %}
{% if u.failures %}
{{ count(u.failures|length, "run") }} failed and {{ "is" if u.failures|length == 1 else "are" }}
missing.
{% endif %}
{% if u.without_shared_draw %}
Not compared, as a draw is missing: {{ joined(u.without_shared_draw) }}.
{% endif %}
{% if u.language_models|length == 1 %}
Only one language model was tried, {{ u.language_models[0] }}; another may change the order.
{% endif %}
{% if u.one_domain %}
All texts to evaluate on are of one kind; texts of another source or a later time may do worse.
{% endif %}
{% endmacro %}

{% macro remarks() %}
{% set u = facts.unknown %}
{% if u.chosen_scored_highest and u.num_compared > 2 %}
The recommended score is the highest of {{ u.num_compared }} on the same texts, so it is a little
too high.
{% endif %}
{% if u.num_unanswered %}
Of {{ "{:,}".format(u.num_evaluated) }} texts {{ "{:,}".format(u.num_unanswered) }} got no answer
and count as wrong.
{% endif %}
{% if u.not_at_largest %}
Not run at {{ count(u.largest_size, "label") }} and judged at fewer: {{ joined(smaller) }}.
{% endif %}
{% if u.waiting.num_waiting %}
{{ u.waiting.num_waiting }} of {{ count(u.waiting.num_runs, "run") }} whose processor time is known
took more than that, up to {{ "%.1f"|format(u.waiting.most) }} times: the machine was shared, and
times are rough.
{% endif %}
{% if u.processors|length > 1 %}
Runs are of several machines ({{ joined(u.processors) }}), so their times are not comparable.
{% endif %}
{% if u.number_formats|length > 1 %}
Runs were computed in {{ joined(u.number_formats) }} (`model.dtype`; auto takes what a machine
computes in); small differences between them may come of that.
{% endif %}
{% if u.always_wrong and u.always_wrong.num_examples %}
{% set wrong, one = u.always_wrong, u.always_wrong.num_examples == 1 %}
{{ count(wrong.num_examples, "text") }} {{ "is" if one else "are" }} answered wrongly by all
{{ wrong.num_methods }} methods that read texts
({{ "such as " if wrong.num_examples > wrong.ids|length }}{{ joined(wrong.ids) }});
{{ "its label" if one else "some of their labels" }} may be wrong.
{% endif %}
{% endmacro %}
"""
