// Is all well, and if not: which credential, why, and what to do?

import {
  BAR,
  COLOURED,
  CREDENTIAL,
  CURRENT_STATE,
  EACH,
  GREEN,
  GREY,
  ORANGE,
  PLAIN,
  PROVIDER,
  PURPLE,
  RED,
  SKY,
  STATE_NAMES,
  TEXT,
  TO_CREDENTIAL,
  TO_RUNBOOK,
  TROUBLE,
  YELLOW,
  all,
  bars,
  bigNumber,
  colouredOutcomes,
  durations,
  each,
  host,
  labelled,
  latest,
  newest,
  nothing,
  ofCredential,
  ofProvider,
  perennialDashboard,
  range,
  row,
  until,
  words,
} from './shared';

const TIME_LEFT = until(latest(ofCredential('token_expires_at_seconds')));
const THRESHOLD = latest(ofCredential('token_expiry_alert_threshold_seconds'));
/** Not of those that need a login already: whatever time their refresh token had left, it is dead. */
const HUMAN_NEEDED_BY = `(${latest(ofCredential('human_needed_by_timestamp_seconds'))} unless on (${EACH}) (${latest(ofCredential('credential_state', 'state="needs_login"'))} == 1))`;
const HUMAN_TIME_LEFT = until(HUMAN_NEEDED_BY);

/** How many credentials are in one of these states. */
const inState = (states: string) => `sum(${latest(ofCredential('credential_state', `state=~"${states}"`))})`;

/** What only a person can put right, most urgent first: one series each, labelled with problem and runbook. */
const PROBLEMS = [
  { problem: 'needs_login', runbook: 'tokenneedslogin' },
  { problem: 'misconfigured', runbook: 'credentialmisconfigured' },
  { problem: 'pending', runbook: 'credentialpending' },
]
  .map((labels) =>
    labelled(each(`${latest(ofCredential('credential_state', `state="${labels.problem}"`))} == 1`), labels),
  )
  .concat(
    labelled(
      each(`${HUMAN_TIME_LEFT} < ${latest(ofCredential('human_needed_alert_threshold_seconds'))}`),
      { problem: 'human_needed_soon', runbook: 'humanneededsoon' },
    ),
    labelled(
      `max by (instance) (${latest(host('perennial_store_unsaved_credentials'))}) > 0`,
      { problem: 'unsaved', runbook: 'tokensunsaved' },
    ),
  )
  .join(' or ');
/** How long a person has: until the token dies, or the login where that is what ends soon. */
const HOW_LONG =
  `(${each(`${HUMAN_TIME_LEFT} < ${latest(ofCredential('human_needed_alert_threshold_seconds'))}`)}` +
  ` unless on (${EACH}) ${latest(ofCredential('credential_state', 'state="needs_login"'))} == 1)` +
  ` or on (${EACH}) ${each(TIME_LEFT)}`;
/** Completes a query to all rows of `PROBLEMS`, with a value for those that it has nothing for. */
const ofProblems = (expr: string, otherwise = '') =>
  `(${expr}) and on (${EACH}) (${PROBLEMS}) or on (${EACH}) ${each(PROBLEMS)}${otherwise}`;
/** Completes a query to all credentials. */
const ofAll = (expr: string, otherwise = '') =>
  `${expr} or on (${EACH}) ${each(CURRENT_STATE)}${otherwise}`;

const TROUBLES = each(ofCredential('credential_trouble'), `${EACH}, reason, error`);

/** The alerts that fire, critical ones first. One that says that there is no Perennial has no instance. */
const alerts = (matchers = '') => `ALERTS{job=~"$job",alertstate="firing"${matchers}}`;
const FIRING = `sort_desc(max by (alertname, severity, credential, provider, job_name, instance) (${alerts(',severity="critical"')} * 3 or ${alerts(',severity="warning"')} * 2 or ${alerts()}))`;

const statPlace = (title: string, description: string) => ({ title, description, width: 3, height: 4, unit: 'short' });

/** Of all attempts at each provider in the time shown, the share that succeeded. */
const succeeded = (by: string) => {
  const successes = `sum by (${by}) (increase(${ofProvider('refresh_success_total')}[$__range]))`;
  const failures = `sum by (${by}) (increase(${ofProvider('refresh_failures_total')}[$__range]))`;
  return `${successes} / (${successes} + ${failures})`;
};

/**
 * How much of a month's error budget is left, where the recording rules are loaded: they say which share of a
 * provider's tokens is overdue. Time before there was anything to measure counts as good, as in the alerts.
 */
const BUDGET = `min(1 - sum_over_time(${ofProvider('provider:token_refresh_overdue:ratio')}[30d:5m]) / 8640 / 0.01)`;
/** The same without the rules, by attempts: of the histogram, which has few series, since 30 days are long. */
const ended = (matchers: string) =>
  `sum by (provider) (increase(${ofProvider('refresh_duration_seconds_count', matchers)}[30d]))`;
const BUDGET_BY_ATTEMPTS = `min((${ended('outcome="success"')} / ${ended('')} - 0.99) / 0.01)`;

export const fleet = perennialDashboard({
  uid: 'perennial-fleet',
  title: 'Perennial / Fleet',
  description: 'All tokens: which live, which are in danger, why, and what to do.',
  from: 'now-1h',
  variables: [PROVIDER, all(CREDENTIAL())],
})
  .withPanel(
    bigNumber(
      {
        ...statPlace(
          'Perennial down',
          'Instances of Perennial that Prometheus has not reached for 2 minutes. While this is not 0, the rest of the dashboard is old. See PerennialDown in the runbook.',
        ),
        runbook: 'perennialdown',
        steps: TROUBLE,
      },
      [{ expr: `sum(max_over_time(${host('up')}[2m]) == bool 0)`, legend: 'down' }],
    ),
  )
  .withPanel(
    bigNumber(
      {
        ...statPlace('Tokens alive', 'Credentials whose access token is valid now, and how many credentials there are.'),
        steps: PLAIN,
      },
      [
        // A sample that is minutes old does not make a token expired that Perennial called fresh then.
        {
          expr: `sum(${each(`(${TIME_LEFT} > bool 0) or ${latest(ofCredential('credential_state', 'state=~"fresh|due|stale"'))}`)})`,
          legend: 'alive',
        },
        { expr: `count(${CURRENT_STATE})`, legend: 'of' },
      ],
    ),
  )
  .withPanel(
    bigNumber(
      {
        ...statPlace(
          'In danger',
          'Tokens that are still valid, with less time left than their own alert threshold: a quarter of their life, at most 6 hours, unless configured. They should have been refreshed by now.',
        ),
        runbook: 'tokenexpiringsoon',
        steps: TROUBLE,
      },
      [{ expr: `sum((${TIME_LEFT} < bool ${THRESHOLD}) * (${TIME_LEFT} > bool 0))`, legend: 'in danger' }],
    ),
  )
  .withPanel(
    bigNumber(
      {
        ...statPlace('Expired', 'Credentials whose access token has expired and was not replaced, for whatever reason. Programs that need it fail.'),
        runbook: 'tokenexpired',
        steps: TROUBLE,
      },
      // Only with Perennial's own word: a sample that is minutes old would make a short-lived token look expired.
      [
        {
          expr: `sum((${TIME_LEFT} <= bool 0) * sum without (state) (${latest(ofCredential('credential_state', 'state=~"expired|needs_login|misconfigured"'))}))`,
          legend: 'expired',
        },
      ],
    ),
  )
  .withPanel(
    bigNumber(
      {
        ...statPlace(
          'Need a login',
          'Credentials that only a person can help, by logging in: the provider refused the refresh token, or there never was one. The table below says which.',
        ),
        runbook: 'tokenneedslogin',
        steps: TROUBLE,
      },
      [{ expr: inState('needs_login|pending'), legend: 'need a login' }],
    ),
  )
  .withPanel(
    bigNumber(
      {
        ...statPlace(
          'Misconfigured',
          'Credentials that the provider refuses because of the configuration: client id, secret, scope or grant. The table below says which.',
        ),
        runbook: 'credentialmisconfigured',
        steps: TROUBLE,
      },
      [{ expr: inState('misconfigured'), legend: 'misconfigured' }],
    ),
  )
  .withPanel(
    bigNumber(
      {
        ...statPlace(
          'Providers paused',
          'Providers that are left alone for a moment: five failures in a row, or they asked for it. Their tokens live on what they have.',
        ),
        runbook: 'providerunhealthy',
        steps: TROUBLE,
      },
      [{ expr: `sum(${latest(ofProvider('perennial_provider_paused'))})`, legend: 'paused' }],
    ),
  )
  .withPanel(
    bigNumber(
      {
        ...statPlace(
          'Not saved',
          'Credentials whose newest tokens are only in memory because the disk refuses them. Do not stop the process: they would be lost.',
        ),
        runbook: 'tokensunsaved',
        steps: TROUBLE,
      },
      [{ expr: `sum(${latest(host('perennial_store_unsaved_credentials'))})`, legend: 'not saved' }],
    ),
  )
  .withPanel(
    newest(
      {
        title: 'What to do now',
        description:
          'What only a person can put right, the most urgent first. "What to do" opens that section of the runbook, the name opens the life of the credential. "Time left" is how long you have: until the token expires, or until the login does where that is what ends soon.',
        width: 15,
        height: 8,
        empty: 'Nothing needs a person.',
        hidden: ['reason'],
      },
      [
        {
          name: 'Problem',
          label: 'problem',
          expr: PROBLEMS,
          width: 160,
          cell: COLOURED,
          mappings: [
            words({
              needs_login: { text: 'needs a login', color: PURPLE },
              misconfigured: { text: 'misconfigured', color: ORANGE },
              pending: { text: 'never logged in', color: GREY },
              human_needed_soon: { text: 'login needed soon', color: YELLOW },
              unsaved: { text: 'tokens not saved', color: RED },
            }),
          ],
        },
        { name: 'Credential', label: 'credential', links: [TO_CREDENTIAL] },
        {
          name: 'What to do',
          label: 'runbook',
          width: 220,
          links: [TO_RUNBOOK],
          mappings: [
            words({
              tokenneedslogin: { text: 'Log in, then import' },
              credentialmisconfigured: { text: 'Correct the configuration' },
              humanneededsoon: { text: 'Log in before it is too late' },
              credentialpending: { text: 'Log in for the first time' },
              tokensunsaved: { text: 'Make room; do not stop it' },
            }),
          ],
        },
        {
          name: 'Time left',
          expr: ofProblems(HOW_LONG, ' * NaN'),
          unit: 's',
          decimals: 1,
          cell: TEXT,
          steps: [[null, RED], [0, 'text']],
          mappings: [nothing('no token')],
        },
        { name: 'Error of the provider', label: 'error', expr: ofProblems(TROUBLES), width: 165 },
        { name: 'Provider', label: 'provider' },
        { name: 'Instance', label: 'instance' },
      ],
    ),
  )
  .withPanel(
    newest(
      {
        title: 'Firing alerts',
        description:
          'Alerts that Prometheus fires now, from the rules that come with Perennial. Empty without those rules too.',
        width: 9,
        height: 8,
        empty: 'No alert fires.',
        hidden: ['alertstate'],
      },
      [
        {
          name: 'Alert',
          label: 'alertname',
          width: 180,
          links: [TO_RUNBOOK],
          expr: FIRING,
        },
        {
          name: 'Severity',
          label: 'severity',
          width: 76,
          cell: COLOURED,
          mappings: [words({ critical: { color: RED }, warning: { color: ORANGE }, info: { color: SKY } })],
        },
        { name: 'Credential', label: 'credential', width: 100, links: [TO_CREDENTIAL] },
        { name: 'Provider', label: 'provider', width: 95 },
        { name: 'Job', label: 'job_name', width: 110 },
        { name: 'Instance', label: 'instance' },
      ],
    ),
  )
  .withPanel(
    newest(
      {
        title: 'Time left, most endangered first',
        description:
          'Every credential. "Against its threshold" compares the time left with the alert threshold of that very token: a full bar is a new token, an orange one has less left than its threshold. "Next attempt" is when Perennial tries again by itself; without one it waits for a person. "Failures" are those in the time shown.',
        width: 24,
        height: 11,
        sortBy: { column: 'Against its threshold', descending: false },
      },
      [
        { name: 'Credential', label: 'credential', links: [TO_CREDENTIAL] },
        {
          name: 'State',
          label: 'state',
          expr: CURRENT_STATE,
          width: 130,
          cell: COLOURED,
          mappings: [STATE_NAMES],
        },
        {
          name: 'Time left',
          expr: ofAll(each(TIME_LEFT), ' * NaN'),
          unit: 's',
          decimals: 1,
          cell: TEXT,
          steps: [[null, RED], [0, 'text']],
          mappings: [nothing('no token')],
        },
        {
          name: 'Against its threshold',
          // -1 is no token; an expired one stays above, so that it does not look like that.
          expr: ofAll(`clamp_min((${each(TIME_LEFT)}) / ${each(THRESHOLD)}, -0.9)`, ' * 0 - 1'),
          unit: 'percentunit',
          width: 220,
          cell: BAR,
          min: 0,
          max: 4,
          steps: [[null, RED], [0, ORANGE], [1, GREEN]],
          mappings: [
            words({ '-1': { text: 'no token', color: GREY } }),
            range(null, 0, 'expired', RED),
            range(0, 1, 'in danger', ORANGE),
            range(1, null, 'enough', GREEN),
          ],
        },
        {
          name: 'Next attempt in',
          expr: ofAll(each(until(ofCredential('token_refresh_next_attempt_at_seconds'))), ' * NaN'),
          unit: 's',
          decimals: 1,
          width: 150,
          mappings: [nothing('waits for a person'), range(-30, 0, 'now', SKY)],
        },
        {
          name: 'Attempts left',
          expr: ofAll(each(ofCredential('refresh_attempts_left')), ' * NaN'),
          unit: 'short',
          width: 105,
          mappings: [words({ '100': { text: 'plenty' } }), nothing('–')],
        },
        {
          name: 'Failures',
          expr: ofAll(
            `sum by (${EACH}) (increase(${ofCredential('refresh_failures_total')}[$__range]))`,
            ' * NaN',
          ),
          unit: 'short',
          decimals: 0,
          width: 85,
          mappings: [nothing('–')],
        },
        { name: 'Last failure', label: 'reason', expr: ofAll(TROUBLES) },
        { name: 'Error of the provider', label: 'error', width: 165 },
        { name: 'Provider', label: 'provider' },
        { name: 'Instance', label: 'instance' },
      ],
    ),
  )
  .withRow(row('What comes'))
  .withPanel(
    newest(
      {
        title: 'When a person is needed next',
        description:
          'Credentials for which only a new login will help from a known time on: the refresh token ends and cannot be renewed. Only where the provider tells. The alert comes at the threshold.',
        width: 12,
        height: 8,
        sortBy: { column: 'In', descending: false },
        empty: 'No provider tells of an end.',
      },
      [
        { name: 'Credential', label: 'credential', links: [TO_CREDENTIAL] },
        { name: 'In', expr: each(HUMAN_TIME_LEFT), unit: 's', decimals: 1 },
        {
          name: 'At',
          expr: `${each(HUMAN_NEEDED_BY)} * 1000`,
          unit: 'dateTimeAsIso',
          width: 160,
        },
        {
          name: 'Against its threshold',
          expr: `(${each(HUMAN_TIME_LEFT)}) / ${each(latest(ofCredential('human_needed_alert_threshold_seconds')))}`,
          unit: 'percentunit',
          width: 170,
          cell: BAR,
          min: 0,
          max: 4,
          steps: [[null, RED], [0, ORANGE], [1, GREEN]],
          mappings: [range(null, 0, 'too late', RED), range(0, 1, 'act now', ORANGE), range(1, null, 'enough', GREEN)],
        },
        { name: 'Provider', label: 'provider' },
        { name: 'Instance', label: 'instance' },
      ],
    ),
  )
  .withPanel(
    newest(
      {
        title: 'Providers',
        description:
          'How each provider answers: whether it is left alone for now, failures in a row over all its credentials, and over the time shown the share of refreshes that succeeded and how long 95 of 100 took at most.',
        width: 12,
        height: 8,
        sortBy: { column: 'Failures in a row', descending: true },
      },
      [
        { name: 'Provider', label: 'provider' },
        {
          name: 'Now',
          expr: each(latest(ofProvider('perennial_provider_paused')), 'instance, provider'),
          width: 120,
          cell: COLOURED,
          mappings: [words({ '0': { text: 'in use', color: GREEN }, '1': { text: 'paused', color: RED } })],
        },
        {
          name: 'Failures in a row',
          expr: each(latest(ofProvider('perennial_provider_consecutive_failures')), 'instance, provider'),
          unit: 'short',
          width: 145,
        },
        {
          name: 'Succeeded',
          expr: succeeded('instance, provider'),
          unit: 'percentunit',
          decimals: 1,
          mappings: [nothing('no refresh')],
        },
        {
          name: 'Slowest 5 % take',
          width: 140,
          expr: `histogram_quantile(0.95, sum by (le, instance, provider) (increase(${ofProvider('refresh_duration_seconds_bucket')}[$__range])))`,
          unit: 's',
          mappings: [nothing('no refresh')],
        },
        { name: 'Instance', label: 'instance' },
      ],
    ),
  )
  .withRow(row('Refreshes'))
  .withPanel(
    colouredOutcomes(
      bars(
        {
          title: 'Refreshes by outcome',
          description:
            'How many refreshes ended in each step of time, and how: success, or the reason of the failure. Single failures are tried again and need nobody.',
          width: 12,
          height: 9,
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
    durations(
      {
        title: 'How long refreshes take',
        description:
          'From the start of a refresh until the new tokens are on the disk, or until it failed. The brighter, the more refreshes took that long. All credentials of the chosen providers.',
        width: 12,
        height: 9,
      },
      `sum by (le) (increase(${ofProvider('refresh_duration_seconds_bucket')}[$__rate_interval]))`,
    ),
  )
  .withPanel(
    bigNumber(
      {
        title: 'Error budget left, 30 days',
        description:
          'The aim: 99 % of the time, the refresh of a token is not overdue. 100 % is left when none was, below 0 the aim is missed; "overspent" is by far. Of the provider that is worst off. Without the recording rules of Perennial: 99 of 100 attempts succeed, which is stricter.',
        width: 6,
        height: 5,
        unit: 'percentunit',
        steps: [[null, RED], [0, ORANGE], [0.25, GREEN]],
      },
      [{ expr: `${BUDGET} or ${BUDGET_BY_ATTEMPTS}`, legend: 'left' }],
    )
      .decimals(0)
      .mappings([range(null, -1, 'overspent', RED)]),
  )
  .withPanel(
    bigNumber(
      {
        title: 'Attempts that succeed, worst provider',
        description: 'The share of attempts that succeeded in the time shown, of the provider that is worst off. An attempt that fails is tried again; only if that goes on, tokens are late.',
        width: 6,
        height: 5,
        unit: 'percentunit',
        steps: [[null, RED], [0.95, ORANGE], [0.99, GREEN]],
      },
      [{ expr: `min(${succeeded('provider')})`, legend: 'succeeded' }],
    ).decimals(1),
  )
  .withPanel(
    newest(
      {
        title: 'Sinks that do not get their token',
        description:
          'Places to which the newest access token could not be delivered. The refresh itself succeeded; the delivery is tried again. Programs that read the token there still have the old one.',
        width: 12,
        height: 5,
        empty: 'Every sink has the newest token.',
      },
      [
        { name: 'Credential', label: 'credential', links: [TO_CREDENTIAL] },
        { name: 'Sink', label: 'sink' },
        {
          name: 'Failures in a row',
          expr: `${each(latest(ofCredential('perennial_sink_consecutive_failures')), `${EACH}, sink`)} > 0`,
          unit: 'short',
        },
        { name: 'Provider', label: 'provider' },
        { name: 'Instance', label: 'instance' },
      ],
    ),
  );
