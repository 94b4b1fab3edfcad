// The life of one token: what happened to it, what comes next, and whether that is as it should be.

import * as common from '@grafana/grafana-foundation-sdk/common';
import { AnnotationQueryBuilder } from '@grafana/grafana-foundation-sdk/dashboard';
import * as prometheus from '@grafana/grafana-foundation-sdk/prometheus';
import { PanelBuilder as TablePanelBuilder } from '@grafana/grafana-foundation-sdk/table';
import { DataqueryBuilder as TempoQueryBuilder, SearchTableType } from '@grafana/grafana-foundation-sdk/tempo';

import {
  COLOURED,
  CREDENTIAL,
  EACH,
  GREEN,
  GREY,
  ORANGE,
  PLAIN,
  PROMETHEUS,
  PROVIDER,
  PURPLE,
  RED,
  SKY,
  STATE_NUMBERS,
  TEMPO,
  TEMPO_DATASOURCE,
  bars,
  bigNumber,
  colouredOutcomes,
  dashed,
  each,
  fixed,
  latest,
  lines,
  newest,
  ofCredential,
  perennialDashboard,
  range,
  row,
  stateNumber,
  until,
  words,
  wordsOverTime,
} from './shared';

/** The spans of the refreshes of the chosen credentials, in TraceQL. */
const REFRESH_SPANS = '{resource.service.name="perennial" && name="refresh" && span.credential=~"${credential:pipe}"}';

/** The same in Explore. Grafana fills in the variables after the rest is encoded. */
const explore = () => {
  const filled = (text: string) =>
    encodeURIComponent(text).replaceAll(/%24%7B(\w+)(?:%3A(\w+))?%7D/g, (_, name, format) =>
      format ? `\${${name}:${format}}` : `\${${name}}`,
    );
  const query = { refId: 'A', datasource: TEMPO, queryType: 'traceql', query: REFRESH_SPANS, limit: 50 };
  const pane = { datasource: TEMPO.uid, queries: [query], range: { from: '${__from}', to: '${__to}' } };
  return `/explore?schemaVersion=1&panes=${filled(JSON.stringify({ traces: pane }))}`;
};

const place = (title: string, description: string) => ({ title, description, width: 4, height: 4 });

/** An event on every graph over time. */
function event(
  name: string,
  colour: string,
  query: { expr: string; valueIsTime: boolean },
  title: string,
  text: string,
): AnnotationQueryBuilder {
  const { expr, valueIsTime } = query;
  // Grafana 12 reads the expression from the target, older ones from the annotation itself.
  return new AnnotationQueryBuilder()
    .name(name)
    .datasource(PROMETHEUS)
    .enable(true)
    .hide(false)
    .iconColor(colour)
    .expr(expr)
    .step('5s')
    .titleFormat(title)
    .textFormat(text)
    .tagKeys('credential')
    .useValueForTime(valueIsTime)
    .target(new prometheus.DataqueryBuilder().datasource(PROMETHEUS).expr(expr).refId('Anno').interval('5s').range());
}

const TIME_LEFT = each(until(latest(ofCredential('token_expires_at_seconds'))));
const THRESHOLD = each(latest(ofCredential('token_expiry_alert_threshold_seconds')));

/** How long before the expiry something is planned: its height on the saw-tooth. */
const beforeExpiry = (metric: string) => `${ofCredential('token_expires_at_seconds')} - ${ofCredential(metric)}`;

export const credential = perennialDashboard({
  uid: 'perennial-credential',
  title: 'Perennial / Credential',
  description: 'The life of one token: its time left, its refreshes, and what comes next.',
  from: 'now-6h',
  variables: [PROVIDER, CREDENTIAL(), TEMPO_DATASOURCE],
})
  .annotation(
    event(
      'Refreshed',
      GREEN,
      // Its token was issued then: exact, however rarely it is looked at.
      {
        expr: `(${each(ofCredential('token_expires_at_seconds'))} - ${each(ofCredential('token_lifetime_seconds'))}) * 1000`,
        valueIsTime: true,
      },
      'refreshed',
      '{{credential}} got a new token',
    ),
  )
  .annotation(
    event(
      'Refresh failed',
      RED,
      { expr: `increase(${ofCredential('refresh_failures_total')}[$__rate_interval]) > 0`, valueIsTime: false },
      'refresh failed: {{reason}}',
      '{{credential}} at {{provider}}',
    ),
  )
  .withPanel(
    bigNumber(
      {
        ...place(
          'State',
          'fresh: all is well. due: a refresh is due or under way. stale: readers wait for the refresh. expired: there is no valid token. pending: never logged in. misconfigured: change the configuration. needs login: log in.',
        ),
        unit: 'none',
        steps: PLAIN,
      },
      [{ expr: stateNumber(latest), legend: '{{credential}}' }],
    ).mappings([STATE_NUMBERS]),
  )
  .withPanel(
    bigNumber(
      {
        ...place('Time left', 'How long the access token is still valid; less than 0 when it has expired. Coloured by its own alert threshold: orange below it, red when expired.'),
        unit: 's',
        steps: [[null, RED], [0, ORANGE]],
      },
      [
        // A stat panel knows no threshold of a series of its own, so each side of it is a series.
        { expr: `${TIME_LEFT} >= ${THRESHOLD}`, legend: 'enough' },
        { expr: `${TIME_LEFT} < ${THRESHOLD}`, legend: 'in danger' },
      ],
    )
      .decimals(1)
      .textMode(common.BigValueTextMode.Value)
      .overrideByName('enough', [fixed(GREEN)]),
  )
  .withPanel(
    bigNumber(
      {
        ...place('Next attempt in', 'When Perennial refreshes it next by itself: by policy, by schedule or as a retry. Nothing here while a person must act first.'),
        unit: 's',
        steps: PLAIN,
      },
      [{ expr: each(until(ofCredential('token_refresh_next_attempt_at_seconds'))), legend: '{{credential}}' }],
    )
      .decimals(1)
      .mappings([range(-30, 0, 'now', SKY)])
      .noValue('waits for a person'),
  )
  .withPanel(
    bigNumber(
      {
        ...place('Attempts left', 'How many attempts the policy still has before the access token expires.'),
        unit: 'short',
        steps: [[null, RED], [3, ORANGE], [10, GREEN]],
      },
      [{ expr: each(latest(ofCredential('refresh_attempts_left'))), legend: '{{credential}}' }],
    ).mappings([words({ '100': { text: 'plenty', color: GREEN } })]),
  )
  .withPanel(
    bigNumber(
      {
        ...place('Token lives', 'How long an access token of this credential lives from its issue.'),
        unit: 's',
        steps: PLAIN,
      },
      [{ expr: each(latest(ofCredential('token_lifetime_seconds'))), legend: '{{credential}}' }],
    ).decimals(1),
  )
  .withPanel(
    bigNumber(
      {
        ...place('Refreshes', 'Refreshes that succeeded and that failed, in the time shown.'),
        unit: 'short',
        steps: PLAIN,
      },
      [
        { expr: `sum(increase(${ofCredential('refresh_success_total')}[$__range]))`, legend: 'succeeded' },
        { expr: `sum(increase(${ofCredential('refresh_failures_total')}[$__range]))`, legend: 'failed' },
      ],
    )
      .decimals(0)
      .overrideByName('failed', [
        { id: 'color', value: { mode: 'thresholds' } },
        {
          id: 'thresholds',
          value: { mode: 'absolute', steps: [{ value: null, color: GREEN }, { value: 0.5, color: ORANGE }] },
        },
      ]),
  )
  .withPanel(
    lines(
      {
        title: 'Time left, over time',
        description:
          'The access token grows older until a refresh replaces it: a saw-tooth. It should turn at the "due" line. Below "alert threshold" it is in danger; below "mandatory" readers wait for the refresh; at 0 it has expired. Click a line for its traces.',
        width: 24,
        height: 11,
        unit: 's',
      },
      [
        { expr: until(ofCredential('token_expires_at_seconds')), legend: 'time left' },
        { expr: beforeExpiry('token_refresh_due_at_seconds'), legend: 'due' },
        { expr: ofCredential('token_expiry_alert_threshold_seconds'), legend: 'alert threshold' },
        { expr: beforeExpiry('token_refresh_mandatory_at_seconds'), legend: 'mandatory' },
      ],
    )
      .fillOpacity(15)
      // The distance to 0 is what matters; less than 0 it is when it has expired.
      .axisSoftMin(0)
      .overrideByName('due', dashed(GREEN))
      .overrideByName('alert threshold', dashed(ORANGE))
      .overrideByName('mandatory', dashed(RED))
      .overrideByName('time left', [
        fixed(SKY),
        { id: 'links', value: [{ title: 'Traces of its refreshes', url: explore(), targetBlank: true }] },
      ]),
  )
  .withPanel(
    wordsOverTime(
      {
        title: 'State over time',
        description: 'In which state the credential was when.',
        width: 24,
        height: 5,
        mappings: [STATE_NUMBERS],
      },
      [{ expr: stateNumber((selector) => selector), legend: '{{credential}}' }],
    ),
  )
  .withPanel(
    newest(
      {
        title: 'Why the last attempt failed',
        description: 'Only while the last attempt failed: the reason, and the error that the provider named.',
        width: 12,
        height: 4,
        empty: 'The last attempt did not fail.',
      },
      [
        { name: 'Credential', label: 'credential' },
        {
          name: 'Reason',
          label: 'reason',
          expr: each(ofCredential('credential_trouble'), `${EACH}, reason, error`),
          cell: COLOURED,
          mappings: [
            words({
              needs_login: { text: 'needs login', color: PURPLE },
              misconfigured: { color: ORANGE },
              network: { color: SKY },
              timeout: { color: SKY },
              rate_limited: { text: 'rate limited', color: SKY },
              server_error: { text: 'server error', color: RED },
              bad_answer: { text: 'bad answer', color: RED },
              store: { color: RED },
            }),
          ],
        },
        { name: 'Error of the provider', label: 'error' },
        { name: 'Provider', label: 'provider' },
        { name: 'Instance', label: 'instance' },
      ],
    ),
  )
  .withPanel(
    newest(
      {
        title: 'Sinks',
        description: 'Where its access tokens are delivered, and whether the newest one is there.',
        width: 12,
        height: 4,
        empty: 'No sink is configured.',
        hidden: ['provider'],
      },
      [
        { name: 'Credential', label: 'credential' },
        { name: 'Sink', label: 'sink' },
        {
          name: 'Newest token',
          expr: each(latest(ofCredential('perennial_sink_consecutive_failures')), `${EACH}, sink`),
          unit: 'none',
          cell: COLOURED,
          steps: [[null, GREEN], [1, RED]],
          mappings: [words({ '0': { text: 'is there', color: GREEN } }), range(1, null, 'is not there', RED)],
        },
        { name: 'Provider', label: 'provider' },
        { name: 'Instance', label: 'instance' },
      ],
    ),
  )
  .withPanel(
    colouredOutcomes(
      bars(
        {
          title: 'Refreshes by outcome',
          description: 'How many refreshes ended in each step of time, and how.',
          width: 12,
          height: 8,
          unit: 'short',
        },
        [
          { expr: `sum(increase(${ofCredential('refresh_success_total')}[$__rate_interval]))`, legend: 'success' },
          {
            expr: `sum by (reason) (increase(${ofCredential('refresh_failures_total')}[$__rate_interval])) > 0`,
            legend: '{{reason}}',
          },
        ],
      ),
    ),
  )
  .withPanel(
    lines(
      {
        title: 'Version',
        description:
          'Grows by one with each token set, whether refreshed or imported. It never falls; a step back means that an old store was put back.',
        width: 12,
        height: 8,
        unit: 'none',
      },
      [{ expr: each(ofCredential('token_version')), legend: '{{credential}}' }],
    )
      .lineInterpolation(common.LineInterpolation.StepAfter)
      .decimals(0),
  )
  .withPanel(
    lines(
      {
        title: 'Lifetime of its tokens',
        description:
          'How long each access token lives from its issue, by where that is known from: the answer, the exp of a JWT, the configuration of the provider, an assumption, or the import. A change means that the provider changed its mind.',
        width: 12,
        height: 8,
        unit: 's',
      },
      [
        {
          expr: each(ofCredential('token_lifetime_seconds'), `${EACH}, source`),
          legend: '{{credential}} ({{source}})',
        },
      ],
    ).min(0),
  )
  .withPanel(
    lines(
      {
        title: 'Until a person is needed',
        description:
          'Time left of the refresh token, until only a new login helps, and the threshold of the alert. Only where the provider tells.',
        width: 12,
        height: 8,
        unit: 's',
      },
      [
        { expr: each(until(ofCredential('refresh_token_expires_at_seconds'))), legend: 'refresh token' },
        { expr: each(until(ofCredential('human_needed_by_timestamp_seconds'))), legend: 'login needed' },
        { expr: each(ofCredential('human_needed_alert_threshold_seconds')), legend: 'alert threshold' },
      ],
    )
      .min(0)
      .noValue('the provider does not tell')
      .overrideByName('refresh token', [fixed(GREY)])
      .overrideByName('login needed', [fixed(PURPLE)])
      .overrideByName('alert threshold', dashed(ORANGE)),
  )
  .withRow(
    // Folded in, so that who has no Tempo sees no error.
    row('Traces (needs Tempo)')
      .collapsed(true)
      .withPanel(
        new TablePanelBuilder()
          .title('Refreshes as traces')
          .description(
            'The refreshes of the chosen credentials in the time shown. A trace leads from the run of the job over the request to the provider to the disk and the sinks. Needs a Tempo data source, and OTEL_EXPORTER_OTLP_ENDPOINT set for Perennial.',
          )
          .datasource(TEMPO)
          .span(24)
          .height(10)
          .unit('none')
          .noValue('no traces')
          .withTarget(
            new TempoQueryBuilder()
              .datasource(TEMPO)
              .refId('A')
              .queryType('traceql')
              .query(REFRESH_SPANS)
              .filters([])
              .limit(50)
              .tableType(SearchTableType.Traces),
          ),
      ),
  );

