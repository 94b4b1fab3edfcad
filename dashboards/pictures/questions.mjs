// What a dashboard asks Prometheus: variables, intervals, queries, annotations, and the answers as
// the data frames that Grafana's Prometheus data source makes of them.

const SECOND = 1000;

/** A Prometheus. An answer that is no success is an error that names the question. */
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
      ask(`label/${label}/values`, { 'match[]': matcher, start: from / SECOND, end: to / SECOND }),
  };
}

/** The dashboard's variables. `given` wins over what the dashboard says. */
export async function variablesOf(dashboard, source, range, given) {
  const variables = {};
  for (const { name, label, type, query, current, allValue } of dashboard.templating.list) {
    let values = [given[name] ?? current?.value ?? query].flat();
    const all = values.includes('$__all');
    if (type === 'query' && !given[name]) {
      const question = substitute(query, variables, forPrometheus);
      const [, matcher, asked] = /^label_values\((.*),\s*(\w+)\)$/s.exec(question);
      values = await source.values(asked, matcher, range.from, range.to);
      values = all ? values : values.slice(0, 1);
    }
    const text = all ? 'All' : type === 'datasource' ? query : values.join(' + ');
    variables[name] = { label, values, text, all: all && allValue };
  }
  return variables;
}

/** Fills in `$x`, `${x}` and `${x:format}`; what is not known stays as it is, as in Grafana. */
export function substitute(text, variables, filled = ({ text }) => text) {
  return text.replace(/\$(\w+)|\$\{(\w+)(?::\w+)?\}/g, (found, plain, braced) => {
    const variable = variables[plain ?? braced];
    return variable ? filled(variable) : found;
  });
}

/** As Grafana writes a variable into PromQL: several values as a regular expression. */
function forPrometheus({ values, text, all }) {
  if (!values) {
    return text;
  }
  const escaped = values.map((value) => value.replace(/[$^*{}[\]+?.()|]/g, '\\\\$&'));
  return all || (escaped.length === 1 ? escaped[0] : `(${escaped.join('|')})`);
}

/** Much as Grafana chooses a step, by the pixels there are and the interval of the scrapes. */
function stepAndIntervals({ from, to, scrape }, points, least) {
  const step = Math.max(Math.ceil((to - from) / points / SECOND) * SECOND, scrape, milliseconds(least));
  const rate = Math.max(step + scrape, 4 * scrape);
  const seconds = (time) => ({ text: `${Math.round(time / SECOND)}s` });
  return { step, intervals: { __interval: seconds(step), __rate_interval: seconds(rate), __range: seconds(to - from) } };
}

export function milliseconds(duration = '0s') {
  const [, count, unit] = /^(\d+)(s|m|h)$/.exec(duration);
  return count * { s: 1, m: 60, h: 3600 }[unit] * SECOND;
}

/** Every target's answer as frames, for a panel that is `width` pixels wide. */
export async function framesOf(panel, width, variables, source, range) {
  const targets = (panel.targets ?? []).filter(({ expr }) => expr);
  const tables = targets.filter(({ format }) => format === 'table').length;
  const { step, intervals } = stepAndIntervals(range, width, panel.interval);
  const answers = targets.map(async (target) => {
    const question = substitute(target.expr, { ...variables, ...intervals }, forPrometheus);
    const { result } = target.instant
      ? await source.instant(question, range.to)
      : await source.range(question, Math.floor(range.from / step) * step, range.to, step);
    const series = result.map(({ metric, value, values }) => ({
      labels: metric,
      points: (values ?? [value]).map(([at, text]) => [at * SECOND, Number(text)]),
    }));
    switch (target.format) {
      case 'table':
        return [tableFrame(series, tables > 1 ? `Value #${target.refId}` : 'Value')];
      case 'heatmap':
        return [bucketsFrame(series)];
      default:
        return series.map((one) => seriesFrame(one, target, step));
    }
  });
  return (await Promise.all(answers)).flat();
}

const times = (values, config = {}) => ({ name: 'Time', type: 'time', config, values });

function seriesFrame({ labels, points }, { legendFormat, instant }, step) {
  const legend = legendFormat.replace(/\{\{\s*(.+?)\s*\}\}/g, (_, label) => labels[label] ?? '');
  const values = points.map(([, value]) => value);
  return {
    fields: [
      times(points.map(([at]) => at), instant ? {} : { interval: step }),
      { name: 'Value', type: 'number', labels, config: { displayNameFromDS: legend }, values },
    ],
  };
}

function tableFrame(series, valueName) {
  const labels = [...new Set(series.flatMap((one) => Object.keys(one.labels)))].sort();
  const column = (name, type, of) => ({ name, type, config: {}, values: series.map(of) });
  return {
    fields: [
      times(series.map(({ points: [[at]] }) => at)),
      ...labels.map((label) => column(label, 'string', (one) => one.labels[label] ?? '')),
      column(valueName, 'number', ({ points: [[, value]] }) => value),
    ],
  };
}

/** Counts in buckets from Prometheus' counts up to and with each bucket. */
function bucketsFrame(series) {
  const bound = ({ labels }) => (labels.le === '+Inf' ? Infinity : Number(labels.le));
  const sorted = series.sort((a, b) => bound(a) - bound(b));
  const all = [...new Set(sorted.flatMap(({ points }) => points.map(([at]) => at)))].sort((a, b) => a - b);
  let below = all.map(() => 0);
  const fields = sorted.map(({ labels, points }) => {
    const at = new Map(points);
    const upTo = all.map((time) => at.get(time) ?? 0);
    const values = upTo.map((count, i) => Math.max(0, count - below[i]));
    below = upTo;
    return { name: labels.le, type: 'number', config: {}, values };
  });
  return { fields: [times(all), ...fields] };
}

/** The dashboard's annotations: the times at which a query has a value, neighbours joined. */
export async function annotationsOf(dashboard, variables, source, range) {
  const found = [];
  for (const { expr, step: least, iconColor, filter, useValueForTime } of dashboard.annotations?.list ?? []) {
    const { step, intervals } = stepAndIntervals(range, 100, least);
    const question = substitute(expr, { ...variables, ...intervals }, forPrometheus);
    const { result } = await source.range(question, Math.floor(range.from / step) * step, range.to, step);
    for (const { values } of result) {
      let last;
      for (const [at, text] of values) {
        const time = useValueForTime ? Math.floor(Number(text)) : at * SECOND;
        if (last && time - last.until <= step) {
          last.until = time;
        } else {
          last = { time, until: time, color: iconColor, filter };
          found.push(last);
        }
      }
    }
  }
  return found.filter(({ time, until }) => until >= range.from && time <= range.to);
}
