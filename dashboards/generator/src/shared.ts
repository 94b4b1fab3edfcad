// What the dashboards have in common: variables, links, colours, and one maker for each kind of
// panel, so that all of them look and behave alike.

import { Builder, Dataquery } from '@grafana/grafana-foundation-sdk/cog';
import * as common from '@grafana/grafana-foundation-sdk/common';
import * as dashboard from '@grafana/grafana-foundation-sdk/dashboard';
import * as heatmap from '@grafana/grafana-foundation-sdk/heatmap';
import * as prometheus from '@grafana/grafana-foundation-sdk/prometheus';
import * as stat from '@grafana/grafana-foundation-sdk/stat';
import * as statetimeline from '@grafana/grafana-foundation-sdk/statetimeline';
import * as table from '@grafana/grafana-foundation-sdk/table';
import * as timeseries from '@grafana/grafana-foundation-sdk/timeseries';

// --- Colours -------------------------------------------------------------------------------------

/** After Okabe and Ito: people with any kind of colour vision can tell them apart. Their red looks like orange; this one is Tol's. */
export const GREEN = '#009E73';
export const SKY = '#56B4E9';
export const BLUE = '#0072B2';
export const YELLOW = '#F0E442';
export const ORANGE = '#E69F00';
export const RED = '#CC3311';
export const PURPLE = '#CC79A7';
export const GREY = '#8E8E8E';

/** The states of a credential, best first. Their place is their number on a state timeline. */
export const STATES: [state: string, colour: string][] = [
  ['fresh', GREEN],
  ['due', SKY],
  ['stale', YELLOW],
  ['pending', GREY],
  ['expired', RED],
  ['misconfigured', ORANGE],
  ['needs_login', PURPLE],
];

/** The reasons of a failed refresh, and success, as series are named. */
export const OUTCOMES: [outcome: string, colour: string][] = [
  ['success', GREEN],
  ['network', SKY],
  ['timeout', BLUE],
  ['rate_limited', YELLOW],
  ['server_error', RED],
  ['bad_answer', GREY],
  ['store', '#6E4B1F'],
  ['misconfigured', ORANGE],
  ['needs_login', PURPLE],
];

type Steps = [from: number | null, colour: string][];

/** Green at 0, red from 1 on: for a count of things in trouble. */
export const TROUBLE: Steps = [[null, GREEN], [1, RED]];
/** One colour, when no value is better than another. */
export const PLAIN: Steps = [[null, SKY]];

export function thresholds(steps: Steps): dashboard.ThresholdsConfigBuilder {
  return new dashboard.ThresholdsConfigBuilder()
    .mode(dashboard.ThresholdsMode.Absolute)
    .steps(steps.map(([value, color]) => ({ value, color })));
}

type Word = { text?: string; color?: string };

/** Shows words in place of values: `{ '0': { text: 'no' } }`. */
export function words(options: Record<string, Word>): dashboard.ValueMapping {
  const numbered = Object.entries(options).map(([value, word], index) => [value, { ...word, index }]);
  return { type: dashboard.MappingType.ValueToText, options: Object.fromEntries(numbered) };
}

/** Shows a word in place of every value within a range; null is without end. */
export function range(from: number | null, to: number | null, text: string, color: string): dashboard.ValueMapping {
  return { type: dashboard.MappingType.RangeToText, options: { from, to, result: { text, color } } };
}

/** Shows a word where there is no number. */
export function nothing(text: string, color?: string): dashboard.ValueMapping {
  const match = dashboard.SpecialValueMatch.NullAndNan;
  return { type: dashboard.MappingType.SpecialValue, options: { match, result: { text, color } } };
}

const asWord = (state: string) => state.replaceAll('_', ' ');
/** For a column or series that holds the name of a state. */
export const STATE_NAMES = words(
  Object.fromEntries(STATES.map(([state, color]) => [state, { text: asWord(state), color }])),
);
/** For `stateNumber`. */
export const STATE_NUMBERS = words(
  Object.fromEntries(STATES.map(([state, color], number) => [`${number}`, { text: asWord(state), color }])),
);

// --- Expressions ---------------------------------------------------------------------------------

/** The labels that tell credentials apart. Those of two instances may have the same name. */
export const EACH = 'instance, provider, credential';

/** A metric of the chosen jobs and instances. */
export function host(name: string, matchers = ''): string {
  return `${name}{job=~"$job",instance=~"$instance"${matchers && `,${matchers}`}}`;
}

/** A metric of the chosen providers. */
export function ofProvider(name: string, matchers = ''): string {
  return host(name, `provider=~"$provider"${matchers && `,${matchers}`}`);
}

/** A metric of the chosen credentials. */
export function ofCredential(name: string, matchers = ''): string {
  return ofProvider(name, `credential=~"$credential"${matchers && `,${matchers}`}`);
}

/**
 * The newest value of the last 5 minutes, which is as far as Prometheus looks back by itself. A scrape
 * that failed ends every series at once; it must not look as if the tokens were gone.
 */
export function latest(selector: string): string {
  return `last_over_time(${selector}[5m])`;
}

/** Seconds until a point in time; less than 0 when it has passed. */
export function until(selector: string): string {
  return `${selector} - time()`;
}

/** One series for each credential, whatever else it is labelled with. */
export function each(expression: string, labels = EACH): string {
  return `max by (${labels}) (${expression})`;
}

/** Every credential, labelled with the state that it is in. */
export const CURRENT_STATE = `max by (${EACH}, state) (${latest(ofCredential('credential_state'))} == 1)`;

/** Every credential, with its place in `STATES` as value. `seen` is how to look at a series. */
export function stateNumber(seen: (selector: string) => string): string {
  const numbered = STATES.map(([state], number) => `${seen(ofCredential('credential_state', `state="${state}"`))} * ${number}`);
  return each(numbered.join(' or '));
}

/** Adds labels to every series of an expression. */
export function labelled(expression: string, labels: Record<string, string>): string {
  return Object.entries(labels).reduce(
    (inner, [name, value]) => `label_replace(${inner}, "${name}", "${value}", "", "")`,
    expression,
  );
}

// --- Queries -------------------------------------------------------------------------------------

export const PROMETHEUS = { type: 'prometheus', uid: '${datasource}' };
export const TEMPO = { type: 'tempo', uid: '${tempo_datasource}' };

function query(expr: string, refId: string): prometheus.DataqueryBuilder {
  return new prometheus.DataqueryBuilder()
    .datasource(PROMETHEUS)
    .editorMode(prometheus.QueryEditorMode.Code)
    .expr(expr)
    .refId(refId);
}

const refId = (index: number) => String.fromCharCode('A'.charCodeAt(0) + index);

/** One line, or one family of lines, of a panel. */
export type Series = { expr: string; legend: string };

function rangeQueries(series: Series[]): Builder<Dataquery>[] {
  return series.map(({ expr, legend }, index) => query(expr, refId(index)).range().legendFormat(legend));
}

// --- Panels --------------------------------------------------------------------------------------

/** What every panel has: what it shows, for somebody who sees it for the first time, and its size. */
export type Place = { title: string; description: string; width: number; height: number };

interface AnyPanel {
  title(title: string): this;
  description(description: string): this;
  datasource(datasource: common.DataSourceRef): this;
  span(width: number): this;
  height(height: number): this;
}

function placed<P extends AnyPanel>(panel: P, place: Place): P {
  return panel
    .title(place.title)
    .description(place.description)
    .datasource(PROMETHEUS)
    .span(place.width)
    .height(place.height);
}

/** A big number, coloured as a whole by its own steps. A click on it opens the section of the runbook. */
export function bigNumber(
  place: Place & { unit: string; steps: Steps; runbook?: string },
  series: Series[],
): stat.PanelBuilder {
  const queries = series.map(({ expr, legend }, index) => query(expr, refId(index)).instant().legendFormat(legend));
  const panel = placed(new stat.PanelBuilder(), place);
  if (place.runbook !== undefined) {
    const url = `\${perennial_url:raw}/runbook#${place.runbook}`;
    panel.dataLinks([new dashboard.DashboardLinkBuilder(TO_RUNBOOK.title).url(url).targetBlank(true)]);
  }
  return panel
    .targets(queries)
    .unit(place.unit)
    .thresholds(thresholds(place.steps))
    .colorScheme(new dashboard.FieldColorBuilder().mode(dashboard.FieldColorModeId.Thresholds))
    .reduceOptions(new common.ReduceDataOptionsBuilder().calcs(['lastNotNull']).values(false).fields(''))
    .colorMode(common.BigValueColorMode.BackgroundSolid)
    .graphMode(common.BigValueGraphMode.None)
    .textMode(series.length > 1 ? common.BigValueTextMode.ValueAndName : common.BigValueTextMode.Auto)
    .noValue('no data');
}

/** Lines over time. */
export function lines(place: Place & { unit: string }, series: Series[]): timeseries.PanelBuilder {
  return placed(new timeseries.PanelBuilder(), place)
    .targets(rangeQueries(series))
    .unit(place.unit)
    .lineWidth(2)
    .fillOpacity(5)
    .showPoints(common.VisibilityMode.Never)
    // A scrape that failed is no gap worth looking at; two minutes are.
    .spanNulls(120_000)
    .colorScheme(new dashboard.FieldColorBuilder().mode(dashboard.FieldColorModeId.PaletteClassicByName))
    .legend(legend())
    .tooltip(tooltip());
}

/** Much longer than a scrape: then $__rate_interval is hardly longer than a step, and no event counts in several. */
const STEP = '1m';

/** How much happened in each step of time, as stacked bars. */
export function bars(place: Place & { unit: string }, series: Series[]): timeseries.PanelBuilder {
  return lines(place, series)
    .drawStyle(common.GraphDrawStyle.Bars)
    .interval(STEP)
    .lineWidth(0)
    .fillOpacity(80)
    .min(0)
    .stacking(new common.StackingConfigBuilder().mode(common.StackingMode.Normal));
}

/** Gives each outcome of a refresh its colour, wherever it is shown. */
export function colouredOutcomes(panel: timeseries.PanelBuilder): timeseries.PanelBuilder {
  return OUTCOMES.reduce((coloured, [outcome, colour]) => coloured.overrideByName(outcome, [fixed(colour)]), panel);
}

/** How often each duration came, over time. `expr` is summed by `le`. */
export function durations(place: Place, expr: string): heatmap.PanelBuilder {
  return placed(new heatmap.PanelBuilder(), place)
    .withTarget(query(expr, 'A').range().format(prometheus.PromQueryFormat.Heatmap).legendFormat('{{le}}'))
    .interval(STEP)
    .unit('short')
    .calculate(false)
    .yAxis(new heatmap.YAxisConfigBuilder().unit('s').axisPlacement(common.AxisPlacement.Left))
    .color(
      new heatmap.HeatmapColorOptionsBuilder()
        .mode(heatmap.HeatmapColorMode.Scheme)
        .scheme('Viridis')
        .scale(heatmap.HeatmapColorScale.Exponential)
        .exponent(0.5)
        .steps(64),
    )
    .cellValues(new heatmap.CellValuesBuilder().unit('short'))
    .tooltip(new heatmap.HeatmapTooltipBuilder().mode(common.TooltipDisplayMode.Single).yHistogram(false))
    .showLegend();
}

/** Which of a few words held when: one row for each series. */
export function wordsOverTime(
  place: Place & { mappings: dashboard.ValueMapping[] },
  series: Series[],
): statetimeline.PanelBuilder {
  return placed(new statetimeline.PanelBuilder(), place)
    .targets(rangeQueries(series))
    .unit('none')
    .mappings(place.mappings)
    .colorScheme(new dashboard.FieldColorBuilder().mode(dashboard.FieldColorModeId.Thresholds))
    .thresholds(thresholds(PLAIN))
    .mergeValues(true)
    .showValue(common.VisibilityMode.Auto)
    .rowHeight(0.8)
    .fillOpacity(80)
    .lineWidth(0)
    .spanNulls(120_000)
    .legend(legend())
    .tooltip(tooltip());
}

/** A column of a table, by the name that it is shown under. */
export type Column = {
  name: string;
  /** The label of the series that is shown; without one it is their value. */
  label?: string;
  /** The query that the value comes from. Each of them must have a row for each row of the first. */
  expr?: string;
  unit?: string;
  decimals?: number;
  width?: number;
  mappings?: dashboard.ValueMapping[];
  /** How the cell is drawn; plain text without. */
  cell?: common.TableCellOptions;
  steps?: Steps;
  min?: number;
  max?: number;
  links?: Link[];
};

export type Link = { title: string; url: string; newTab: boolean };

/**
 * The newest values as a table: the columns in order, and the queries in the order in which they first stand.
 *
 * The rows of all queries are merged where their shared labels are equal. A query that finds nothing would
 * leave no shared labels, so each must have at least the rows of the first; `or` with a default does it.
 */
export function newest(
  place: Place & { sortBy?: { column: string; descending: boolean }; empty?: string; hidden?: string[] },
  columns: Column[],
): table.PanelBuilder {
  const expressions = [...new Set(columns.flatMap(({ expr }) => expr ?? []))];
  const queries = expressions.map((expr, index) => query(expr, refId(index)).instant().format(prometheus.PromQueryFormat.Table));
  const fieldOf = ({ label, expr }: Column) =>
    label ?? (expressions.length > 1 ? `Value #${refId(expressions.indexOf(expr!))}` : 'Value');
  const shown = columns.map(fieldOf);
  const values = expressions.length > 1 ? expressions.map((_, index) => `Value #${refId(index)}`) : ['Value'];
  const excluded = ['Time', 'job', '__name__', ...values, ...(place.hidden ?? [])].filter((field) => !shown.includes(field));
  const panel = placed(new table.PanelBuilder(), place)
    .targets(queries)
    .unit('none')
    .align(common.FieldTextAlignment.Auto)
    .filterable(false)
    // Grafana makes columns 150 wide if it may, and then hides the last ones.
    .minWidth(90)
    .thresholds(thresholds([[null, 'text']]))
    .transformations([
      ...(expressions.length > 1 ? [{ id: 'merge', options: {} }] : []),
      {
        id: 'organize',
        options: {
          excludeByName: Object.fromEntries(excluded.map((field) => [field, true])),
          indexByName: Object.fromEntries(shown.map((field, index) => [field, index])),
          renameByName: Object.fromEntries(columns.map((column) => [fieldOf(column), column.name])),
        },
      },
    ])
    .showHeader(true)
    .cellHeight(common.TableCellHeight.Sm)
    .noValue(place.empty ?? 'no data');
  if (place.sortBy !== undefined) {
    const { column, descending } = place.sortBy;
    panel.sortBy([new common.TableSortByFieldStateBuilder().displayName(column).desc(descending)]);
  }
  return columns.reduce((sofar, column) => {
    const properties = cellProperties(column);
    return properties.length > 0 ? sofar.overrideByName(column.name, properties) : sofar;
  }, panel);
}

function cellProperties(column: Column): dashboard.DynamicConfigValue[] {
  const all: Record<string, unknown> = {
    unit: column.unit,
    decimals: column.decimals,
    min: column.min,
    max: column.max,
    mappings: column.mappings,
    thresholds: column.steps && thresholds(column.steps).build(),
    'color': column.steps && { mode: 'thresholds' },
    'custom.width': column.width,
    'custom.cellOptions': column.cell,
    // A label that a series does not have. Without this the cell would say what the empty table says.
    noValue: column.label && '–',
    links: column.links?.map(({ title, url, newTab }) => ({ title, url, targetBlank: newTab })),
  };
  return Object.entries(all).flatMap(([id, value]) => (value === undefined ? [] : [{ id, value }]));
}

export const COLOURED: common.TableCellOptions = {
  type: common.TableCellDisplayMode.ColorBackground,
  mode: common.TableCellBackgroundDisplayMode.Basic,
};
export const TEXT: common.TableCellOptions = { type: common.TableCellDisplayMode.ColorText };
export const BAR: common.TableCellOptions = {
  type: common.TableCellDisplayMode.Gauge,
  mode: common.BarGaugeDisplayMode.Basic,
  valueDisplayMode: common.BarGaugeValueMode.Color,
};

export function fixed(colour: string): dashboard.DynamicConfigValue {
  return { id: 'color', value: { mode: 'fixed', fixedColor: colour } };
}

/** For a line that is a limit and not a measurement. */
export function dashed(colour: string): dashboard.DynamicConfigValue[] {
  return [
    fixed(colour),
    { id: 'custom.lineStyle', value: { fill: 'dash', dash: [10, 6] } },
    { id: 'custom.lineWidth', value: 2 },
    { id: 'custom.fillOpacity', value: 0 },
  ];
}

function legend(): common.VizLegendOptionsBuilder {
  return new common.VizLegendOptionsBuilder()
    .displayMode(common.LegendDisplayMode.List)
    .placement(common.LegendPlacement.Bottom)
    .showLegend(true)
    .calcs([]);
}

function tooltip(): common.VizTooltipOptionsBuilder {
  return new common.VizTooltipOptionsBuilder()
    .mode(common.TooltipDisplayMode.Multi)
    .sort(common.SortOrder.Descending);
}

export function row(title: string): dashboard.RowBuilder {
  return new dashboard.RowBuilder(title);
}

// --- Links ---------------------------------------------------------------------------------------

const KEPT = '${datasource:queryparam}&${job:queryparam}&${instance:queryparam}&${perennial_url:queryparam}&${__url_time_range}';

/** To the life of the credential whose name the cell holds. */
export const TO_CREDENTIAL: Link = {
  title: 'The life of this credential',
  url: `/d/perennial-credential?var-credential=\${__value.raw}&${KEPT}`,
  newTab: false,
};

/** To the section of the runbook that the cell holds the name of. */
export const TO_RUNBOOK: Link = {
  title: 'What to do, step by step',
  url: '${perennial_url:raw}/runbook#${__value.raw}',
  newTab: true,
};

// --- Dashboards ----------------------------------------------------------------------------------

function variable(name: string, label: string, query: string): dashboard.QueryVariableBuilder {
  return new dashboard.QueryVariableBuilder(name)
    .label(label)
    .datasource(PROMETHEUS)
    .query(query)
    .definition(query)
    .refresh(dashboard.VariableRefresh.OnTimeRangeChanged)
    .sort(dashboard.VariableSort.AlphabeticalAsc);
}

/** A variable that takes several values, with all of them chosen at first. */
export function all(of: dashboard.QueryVariableBuilder): dashboard.QueryVariableBuilder {
  return of.multi(true).includeAll(true).allValue('.+').current({ text: ['All'], value: ['$__all'] });
}

export const JOB = all(variable('job', 'Job', 'label_values(perennial_build_info, job)'));
export const INSTANCE = all(variable('instance', 'Instance', 'label_values(perennial_build_info{job=~"$job"}, instance)'));
export const PROVIDER = all(variable('provider', 'Provider', `label_values(${host('token_version')}, provider)`));
export const CREDENTIAL = () =>
  variable('credential', 'Credential', `label_values(${ofProvider('token_version')}, credential)`);
export const JOB_NAME = all(variable('job_name', 'Job of Perennial', `label_values(${host('perennial_job_info')}, job_name)`));

export const DATASOURCE = new dashboard.DatasourceVariableBuilder('datasource')
  .label('Data source')
  .type('prometheus')
  .multi(false)
  .includeAll(false);

export const TEMPO_DATASOURCE = new dashboard.DatasourceVariableBuilder('tempo_datasource')
  .label('Tempo data source')
  .type('tempo')
  .multi(false)
  .includeAll(false);

const PERENNIAL_URL = new dashboard.TextBoxVariableBuilder('perennial_url')
  .label('Perennial')
  .description("Where your browser reaches Perennial's own pages, for the links to the runbook")
  .defaultValue('http://localhost:9464')
  .current({ text: 'http://localhost:9464', value: 'http://localhost:9464' });

/** A dashboard without panels. */
export function perennialDashboard(options: {
  uid: string;
  title: string;
  description: string;
  from: string;
  variables: Builder<dashboard.VariableModel>[];
}): dashboard.DashboardBuilder {
  return new dashboard.DashboardBuilder(options.title)
    .id(null)
    .uid(options.uid)
    .description(options.description)
    .tags(['perennial'])
    .timezone('browser')
    .readonly()
    .tooltip(dashboard.DashboardCursorSync.Crosshair)
    .refresh('30s')
    .time({ from: options.from, to: 'now' })
    .variables([DATASOURCE, JOB, INSTANCE, ...options.variables, PERENNIAL_URL])
    .link(
      new dashboard.DashboardLinkBuilder('Perennial')
        .type(dashboard.DashboardLinkType.Dashboards)
        .tags(['perennial'])
        .keepTime(true)
        .includeVars(true),
    )
    .link(
      new dashboard.DashboardLinkBuilder('Runbook')
        .type(dashboard.DashboardLinkType.Link)
        .icon('doc')
        .tooltip('What each alert means, and what to do')
        .url('${perennial_url:raw}/runbook')
        .targetBlank(true),
    );
}
