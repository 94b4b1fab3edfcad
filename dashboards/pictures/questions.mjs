// What a dashboard asks Prometheus: variables, intervals, queries, annotations, and the answers as
// the data frames that Grafana's Prometheus data source makes of them.

const SECOND = 1000;

/** A Prometheus under `url`. Every answer that is not a success is an error that names the question. */
export function prometheus(url) {
  const ask = async (path, parameters) => {
    const response = await fetch(`${url}/api/v1/${path}?${new URLSearchParams(parameters)}`);
    const answer = await response.json();
    if (answer.status !== 'success') {
      throw new Error(`${answer.error}\n  ${path} ${JSON.stringify(parameters)}`);
    }
    return answer.data;
  };
  return {
    instant: (query, at) => ask('query', { query, time: at / SECOND }),
    range: (query, from, to, step) =>
      ask('query_range', { query, start: from / SECOND, end: to / SECOND, step: step / SECOND }),
    values: (label, matcher, from, to) =>
      ask(`label/${label}/values`, {
        ...(matcher && { 'match[]': matcher }),
        start: from / SECOND,
        end: to / SECOND,
      }),
  };
}

/** The dashboard's variables and Grafana's own. `given` wins over what the dashboard has. */
export async function variablesOf(dashboard, source, range, given) {
  const variables = {
    __from: { values: [String(range.from)] },
    __to: { values: [String(range.to)] },
    __dashboard: { values: [dashboard.title] },
    ...intervals(range, 1),
  };
  for (const model of dashboard.templating?.list ?? []) {
    const options = await optionsOf(model, variables, source, range);
    const current = given[model.name] ?? model.current?.value;
    const chosen = [current].flat().filter((value) => value !== undefined && value !== '');
    const known = chosen.filter((value) => options.includes(value));
    const all = model.includeAll && (chosen.includes('$__all') || known.length === 0);
    const free = chosen.length > 0 ? chosen : [model.query ?? ''];
    const values = model.type !== 'query' ? free : all ? options : known.length > 0 ? known : options.slice(0, 1);
    variables[model.name] = {
      values,
      all: all && model.allValue,
      text: all ? 'All' : model.type === 'datasource' ? model.query : values.join(' + '),
      quoted: model.multi || model.includeAll,
      label: model.hide === 2 ? undefined : (model.label ?? model.name),
    };
  }
  return variables;
}

async function optionsOf(model, variables, source, range) {
  if (model.type !== 'query') {
    return [];
  }
  const question = substitute(model.query.query ?? model.query, variables, forPrometheus);
  const [, matcher, label] = /^label_values\((?:(.*),\s*)?(\w+)\)$/s.exec(question) ?? [];
  if (!label) {
    throw new Error(`variable ${model.name}: only label_values(…) is understood, not ${question}`);
  }
  const filter = model.regex ? new RegExp(model.regex.replace(/^\/|\/$/g, '')) : /.*/;
  return (await source.values(label, matcher, range.from, range.to)).filter((value) => filter.test(value));
}

/** `$x`, `${x}` and `${x:format}`; what is not known stays as it is, as in Grafana. */
export function substitute(text, variables, format = (variable) => variable.text ?? variable.values[0]) {
  return text.replace(/\$(\w+)|\$\{(\w+)(?::(\w+))?\}/g, (found, plain, braced, asked) => {
    const variable = variables[plain ?? braced];
    return variable ? (FORMATS[asked] ?? format)(variable) : found;
  });
}

const alternatives = (values) => (values.length === 1 ? values[0] : `(${values.join('|')})`);
const FORMATS = {
  raw: (variable) => variable.values.join(','),
  text: (variable) => variable.text,
  queryparam: (variable) => variable.values.map(encodeURIComponent).join('&'),
  regex: (variable) =>
    variable.all || alternatives(variable.values.map((value) => value.replace(/[\\^$*+?.()|[\]{}/]/g, '\\$&'))),
};

/** As Grafana writes a variable into PromQL: those with several values as a regular expression. */
function forPrometheus(variable) {
  if (!variable.quoted) {
    return variable.values[0];
  }
  return variable.all || alternatives(variable.values.map((value) => value.replace(/[$^*{}[\]+?.()|]/g, '\\\\$&')));
}

/** Grafana's choice of step, by the pixels there are and the interval of the scrapes. */
function intervals(range, points, least = 0) {
  const step = Math.max(Math.ceil((range.to - range.from) / points / SECOND) * SECOND, range.scrape, least);
  const rate = Math.max(step + range.scrape, 4 * range.scrape);
  const seconds = Math.round((range.to - range.from) / SECOND);
  return {
    __interval: { values: [`${step / SECOND}s`], step },
    __interval_ms: { values: [String(step)] },
    __rate_interval: { values: [`${rate / SECOND}s`] },
    __range: { values: [`${seconds}s`] },
    __range_s: { values: [String(seconds)] },
    __range_ms: { values: [String(seconds * SECOND)] },
  };
}

export const milliseconds = (duration) => {
  const [, count, unit] = /^>?(\d+)(ms|s|m|h|d)$/.exec(duration) ?? [];
  return count ? Number(count) * { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }[unit] : 0;
};

/** Every target's answer as frames, for a panel that is `width` pixels wide, and the time it shows. */
export async function framesOf(panel, width, variables, source, range) {
  const from = panel.timeFrom ? range.to - milliseconds(panel.timeFrom) : range.from;
  const shown = { ...range, from };
  const targets = (panel.targets ?? []).filter((target) => target.expr && !target.hide);
  const tables = targets.filter((target) => target.format === 'table').length;
  const answers = targets.map(async (target) => {
    const least = milliseconds(substitute(target.interval ?? panel.interval ?? '', variables));
    const scope = { ...variables, ...intervals(shown, panel.maxDataPoints ?? width, least) };
    const { step } = scope.__interval;
    const question = substitute(target.expr, scope, forPrometheus);
    const { result } = target.instant
      ? await source.instant(question, range.to)
      : await source.range(question, Math.floor(from / step) * step, range.to, step);
    const series = (Array.isArray(result[0]) ? [] : result).map(({ metric, value, values }) => ({
      labels: metric,
      points: (values ?? [value]).map(([at, text]) => [at * SECOND, Number(text)]),
    }));
    switch (target.format) {
      case 'table':
        return [tableFrame(target, series, tables > 1 ? `Value #${target.refId}` : 'Value')];
      case 'heatmap':
        return [bucketsFrame(target, series)];
      default:
        return series.map((one) => seriesFrame(target, one, question, step));
    }
  });
  return { range: shown, frames: (await Promise.all(answers)).flat() };
}

function seriesFrame(target, { labels, points }, question, step) {
  const legend = target.legendFormat;
  const named = legend && legend !== '__auto';
  const name = named
    ? legend.replace(/\{\{\s*(.+?)\s*\}\}/g, (_, label) => labels[label] ?? '')
    : Object.keys(labels).length === 0 && question;
  return {
    refId: target.refId,
    fields: [
      { name: 'Time', type: 'time', config: { interval: target.instant ? undefined : step }, values: points.map(([at]) => at) },
      {
        name: labels.__name__ ?? 'Value',
        type: 'number',
        labels: Object.fromEntries(Object.entries(labels).filter(([label]) => label !== '__name__')),
        config: name ? { displayNameFromDS: name } : {},
        values: points.map(([, value]) => value),
      },
    ],
  };
}

function tableFrame(target, series, valueName) {
  const rows = series.flatMap(({ labels, points }) => points.map(([at, value]) => ({ labels, at, value })));
  const labels = [...new Set(series.flatMap((one) => Object.keys(one.labels)))].sort();
  return {
    refId: target.refId,
    fields: [
      { name: 'Time', type: 'time', config: {}, values: rows.map((row) => row.at) },
      ...labels.map((label) => ({
        name: label,
        type: 'string',
        config: {},
        values: rows.map((row) => row.labels[label] ?? ''),
      })),
      { name: valueName, type: 'number', config: {}, values: rows.map((row) => row.value) },
    ],
  };
}

/** Counts in buckets from Prometheus' counts up to and with each bucket. */
function bucketsFrame(target, series) {
  const bound = ({ labels }) => (labels.le === '+Inf' ? Infinity : Number(labels.le));
  const sorted = series.filter(({ labels }) => labels.le).sort((a, b) => bound(a) - bound(b));
  const times = [...new Set(sorted.flatMap(({ points }) => points.map(([at]) => at)))].sort((a, b) => a - b);
  let below = times.map(() => 0);
  const fields = sorted.map((one) => {
    const at = new Map(one.points);
    const upTo = times.map((time) => at.get(time) ?? 0);
    const values = upTo.map((count, i) => Math.max(0, count - below[i]));
    below = upTo;
    return { name: one.labels.le, type: 'number', labels: one.labels, config: {}, values };
  });
  return { refId: target.refId, fields: [{ name: 'Time', type: 'time', config: {}, values: times }, ...fields] };
}

/** The dashboard's annotations: times at which a query's value is not 0, neighbours joined. */
export async function annotationsOf(dashboard, variables, source, range) {
  const found = [];
  for (const model of dashboard.annotations?.list ?? []) {
    const expression = model.expr ?? model.target?.expr;
    if (!expression || model.enable === false) {
      continue;
    }
    const least = milliseconds(model.step ?? model.target?.interval ?? '');
    const scope = { ...variables, ...intervals(range, 100, least) };
    const { step } = scope.__interval;
    const { result } = await source.range(
      substitute(expression, scope, forPrometheus),
      Math.floor(range.from / step) * step,
      range.to,
      step,
    );
    for (const { values } of result) {
      let last;
      for (const [at, text] of values.filter(([, text]) => Number(text) > 0)) {
        const time = model.useValueForTime ? Math.floor(Number(text)) : at * SECOND;
        if (last && time - last.until <= step) {
          last.until = time;
        } else {
          last = { time, until: time, color: model.iconColor, filter: model.filter };
          found.push(last);
        }
      }
    }
  }
  return found.filter(({ time, until }) => until >= range.from && time <= range.to);
}
