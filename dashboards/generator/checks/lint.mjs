// Holds dashboards against the rules of Grafana's dashboard linter (the names that end in -rule are its
// own), and against some of ours. Prints one line for each finding: file, rule, place, message.
//
//     node checks/lint.mjs FILE…

import { readFileSync } from 'node:fs';

import { parser } from '@prometheus-io/lezer-promql';

/** Those of Grafana's units that are in use here. Grafana shows a misspelled one as a plain number, without a word. */
const UNITS = ['none', 'short', 'percentunit', 's', 'dtdurations', 'bytes', 'reqps', 'dateTimeAsIso', 'dateTimeFromNow'];
/** What an override may set. Grafana ignores others without a word. */
const PROPERTIES = [
  'unit', 'decimals', 'min', 'max', 'mappings', 'thresholds', 'color', 'links', 'noValue',
  'custom.width', 'custom.cellOptions', 'custom.lineStyle', 'custom.lineWidth', 'custom.fillOpacity', 'custom.axisPlacement',
];
/** What Grafana fills in by itself. */
const GLOBALS = ['__rate_interval', '__range', '__url_time_range', '__from', '__to', '__value', '__all'];
/** Its alerts have no instance when they say that there is none. */
const WITHOUT_INSTANCE = ['ALERTS'];
// Durations that stand nowhere else, so that they can be told apart after they were filled in.
const RATE_INTERVAL = '8869s';
const RANGE = '9397s';

const isPrometheus = (datasource) => datasource?.type === 'prometheus' && datasource.uid === '${datasource}';
const isTempo = (datasource) => datasource?.type === 'tempo' && datasource.uid === '${tempo_datasource}';

/** Every panel but rows, those that are folded into rows included. */
function panelsOf(dashboard) {
  return dashboard.panels.flatMap((panel) => (panel.type === 'row' ? panel.panels : [panel]));
}

/** Every string in a value, and the names of its keys. */
function stringsIn(value) {
  if (typeof value === 'string') return [value];
  if (value === null || typeof value !== 'object') return [];
  return Object.entries(value).flatMap(([key, inner]) => [key, ...stringsIn(inner)]);
}

function filledIn(expr) {
  return expr.replaceAll('$__rate_interval', RATE_INTERVAL).replaceAll('$__range', RANGE);
}

/** What is wrong with an expression: pairs of rule and message. */
function* promqlFindings(expr, instant) {
  const text = filledIn(expr);
  const source = (node) => text.slice(node.from, node.to);
  const found = [];
  parser.parse(text).iterate({
    enter({ node }) {
      if (node.type.isError) {
        found.push(['target-promql-rule', `does not parse at "${text.slice(node.from, node.from + 30)}"`]);
      } else if (node.name === 'VectorSelector') {
        found.push(...selectorFindings(node, source));
      } else if (node.name === 'MatrixSelector') {
        found.push(...rangeFindings(node, source, instant));
      }
    },
  });
  yield* found;
}

function* selectorFindings(node, source) {
  const name = source(node.getChild('Identifier') ?? node);
  const matchers = node.getChild('LabelMatchers')?.getChildren('UnquotedLabelMatcher').map(source) ?? [];
  for (const label of ['job', 'instance']) {
    const excused = label === 'instance' && WITHOUT_INSTANCE.includes(name);
    if (!excused && !matchers.includes(`${label}=~"$${label}"`)) {
      yield [`target-${label}-rule`, `${name} is not selected by ${label}=~"$${label}"`];
    }
  }
  if (name.endsWith('_total')) {
    const matrix = node.parent?.name === 'MatrixSelector' ? node.parent : undefined;
    const called = matrix?.parent?.parent?.getChild('FunctionIdentifier');
    if (!called || !['rate', 'irate', 'increase'].includes(source(called))) {
      yield ['target-counter-agg-rule', `the counter ${name} is not within rate or increase`];
    }
  }
}

function* rangeFindings(node, source, instant) {
  const duration = source(node.getChild('DurationExpr') ?? node);
  const called = node.parent?.parent?.getChild('FunctionIdentifier');
  const call = called ? source(called) : 'no function';
  if (['rate', 'irate'].includes(call) && duration !== RATE_INTERVAL) {
    yield ['target-rate-interval-rule', `${call} over ${duration} in place of $__rate_interval`];
  }
  // An instant query sees the chosen time as a whole; a fixed window is meant where it stands.
  if (['increase', 'changes'].includes(call) && !instant && duration !== RATE_INTERVAL) {
    yield ['target-rate-interval-rule', `${call} over ${duration} in place of $__rate_interval`];
  }
  if (duration === RANGE && !instant) {
    yield ['target-rate-interval-rule', '$__range in a query over time'];
  }
}

function* variableFindings(dashboard) {
  const variables = dashboard.templating.list;
  const sources = variables.filter(({ type }) => type === 'datasource');
  const main = sources.filter(({ name, label, query }) => name === 'datasource' && label === 'Data source' && query === 'prometheus');
  if (main.length !== 1 || variables[0] !== main[0]) {
    yield ['template-datasource-rule', 'templating', 'the first variable is not the Prometheus data source'];
  }
  for (const { name, label, query } of sources.filter((source) => source !== main[0])) {
    const title = `${query[0].toUpperCase()}${query.slice(1)} data source`;
    if (name !== `${query}_datasource` || label !== title) {
      yield ['template-datasource-rule', name, `is not named ${query}_datasource and labelled ${title}`];
    }
  }
  for (const [index, name] of ['job', 'instance'].entries()) {
    const variable = variables[index + 1];
    const holds =
      variable?.name === name && variable.label.toLowerCase() === name && variable.type === 'query' &&
      isPrometheus(variable.datasource) && variable.multi && variable.includeAll && variable.allValue === '.+';
    if (!holds) {
      yield [`template-${name}-rule`, 'templating', `no variable ${name}, in its place, of the data source, for several values and all`];
    }
  }
  for (const { name, type, query, refresh } of variables) {
    if (type !== 'query') continue;
    const selector = /^label_values\((.+), (\w+)\)$/.exec(query)?.[1];
    const wrong = selector === undefined || [...promqlFindings(selector, true)].some(([rule]) => rule === 'target-promql-rule');
    if (wrong) {
      yield ['template-label-promql-rule', name, `cannot be asked for: ${query}`];
    }
    if (refresh !== 2) {
      yield ['template-on-time-change-reload-rule', name, 'is not asked for again when the time changes'];
    }
  }
  const known = [...variables.map(({ name }) => name), ...GLOBALS];
  const used = stringsIn(dashboard).flatMap((text) => [...text.matchAll(/\$(?:\{(\w+)|(\w+))/g)]);
  for (const [, braced, bare] of used) {
    const name = braced ?? bare;
    if (!known.includes(name)) {
      yield ['known-variables', name, 'is used, and is no variable'];
    }
  }
}

function* wholeFindings(dashboard) {
  if (dashboard.editable !== false) {
    yield ['uneditable-dashboard', 'editable', 'can be changed in Grafana, and the change would be lost'];
  }
  if (dashboard.id !== null || !dashboard.uid?.startsWith('perennial-') || '__inputs' in dashboard || JSON.stringify(dashboard).includes('${DS_')) {
    yield ['provisionable', 'dashboard', 'needs id null, a uid of ours, no __inputs and no ${DS_…}'];
  }
  const toOthers = dashboard.links.filter(({ type, tags, keepTime, includeVars }) => type === 'dashboards' && tags.includes('perennial') && keepTime && includeVars);
  if (!dashboard.tags.includes('perennial') || toOthers.length !== 1) {
    yield ['linked', 'links', 'is not linked with the others by the tag perennial, time and variables kept'];
  }
  const ids = dashboard.panels.flatMap((panel) => [panel.id, ...(panel.panels ?? []).map(({ id }) => id)]);
  if (new Set(ids).size !== ids.length || !ids.every(Number.isInteger)) {
    yield ['panel-ids', 'panels', 'two panels have the same id'];
  }
  const titles = panelsOf(dashboard).map(({ title }) => title);
  for (const title of titles.filter((title, index) => titles.indexOf(title) !== index)) {
    yield ['panel-titles-differ', title, 'stands twice'];
  }
  const taken = new Map();
  for (const { title, gridPos } of dashboard.panels) {
    for (let x = gridPos.x; x < gridPos.x + gridPos.w; x += 1) {
      for (let y = gridPos.y; y < gridPos.y + gridPos.h; y += 1) {
        const other = taken.get(`${x},${y}`);
        if (other !== undefined || x >= 24) {
          yield ['layout', title, other === undefined ? 'is wider than the dashboard' : `covers ${other}`];
        }
        taken.set(`${x},${y}`, title);
      }
    }
  }
}

function* panelFindings(panel) {
  const place = panel.title ?? panel.id;
  if (!panel.title || !panel.description) {
    yield ['panel-title-description-rule', place, 'has no title or no description'];
  }
  const { defaults, overrides } = panel.fieldConfig;
  const properties = overrides.flatMap((override) => override.properties);
  const units = [defaults.unit, ...properties.filter(({ id }) => id === 'unit').map(({ value }) => value)];
  for (const unit of units.filter((unit) => !UNITS.includes(unit))) {
    yield ['panel-units-rule', place, `has the unit ${unit}`];
  }
  for (const { id } of properties.filter(({ id }) => !PROPERTIES.includes(id))) {
    yield ['known-properties', place, `overrides ${id}`];
  }
  const targets = panel.targets ?? [];
  if (targets.length === 0) {
    yield ['panel-no-targets-rule', place, 'asks for nothing'];
  }
  for (const { datasource } of [panel, ...targets]) {
    if (!isPrometheus(datasource) && !isTempo(datasource)) {
      yield ['panel-datasource-rule', place, 'does not use the data source that was chosen'];
    }
  }
  if (new Set(targets.map(({ refId }) => refId)).size !== targets.length) {
    yield ['ref-ids', place, 'two queries have the same refId'];
  }
  yield* nameFindings(panel, place);
  for (const target of targets.filter(({ datasource }) => isPrometheus(datasource))) {
    for (const [rule, message] of promqlFindings(target.expr, target.instant)) {
      yield [rule, `${place}, ${target.refId}`, message];
    }
  }
}

/** Overrides, columns and sorting name fields; Grafana ignores a name that is not there without a word. */
function* nameFindings(panel, place) {
  const targets = panel.targets ?? [];
  const organize = panel.transformations?.find(({ id }) => id === 'organize')?.options;
  const values = targets.length > 1 ? targets.map(({ refId }) => `Value #${refId}`) : ['Value'];
  const { renameByName = {}, indexByName = {}, excludeByName = {} } = organize ?? {};
  for (const field of [renameByName, indexByName, excludeByName].flatMap(Object.keys)) {
    if (field.startsWith('Value') && !values.includes(field)) {
      yield ['known-names', place, `has no query for the column ${field}`];
    }
  }
  const shown = organize ? Object.values(renameByName) : targets.map(({ legendFormat }) => legendFormat);
  // A legend that ends with a label can end with any word.
  const any = shown.some((name) => name?.endsWith('}}'));
  for (const { matcher } of panel.fieldConfig.overrides) {
    const fits = matcher.id === 'byName' ? shown.includes(matcher.options) : shown.some((name) => new RegExp(`^${matcher.options}$`).test(name));
    if (!fits && !any) {
      yield ['known-names', place, `overrides ${matcher.options}, which is not there`];
    }
  }
  for (const { displayName } of panel.options.sortBy ?? []) {
    if (!shown.includes(displayName)) {
      yield ['known-names', place, `is sorted by ${displayName}, which is not there`];
    }
  }
}

function* annotationFindings(dashboard) {
  for (const { name, datasource, expr, target } of dashboard.annotations.list ?? []) {
    if (!isPrometheus(datasource) || expr !== target.expr) {
      yield ['annotations', name, 'does not use the data source that was chosen, or asks for two things'];
    }
    for (const [rule, message] of promqlFindings(expr, false)) {
      yield [rule, name, message];
    }
  }
}

for (const file of process.argv.slice(2)) {
  const dashboard = JSON.parse(readFileSync(file, 'utf8'));
  const findings = [
    ...wholeFindings(dashboard),
    ...variableFindings(dashboard),
    ...annotationFindings(dashboard),
    ...panelsOf(dashboard).flatMap((panel) => [...panelFindings(panel)]),
  ];
  for (const finding of findings) {
    console.log([file, ...finding].join('\t'));
  }
}
