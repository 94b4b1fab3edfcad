// The process itself: does it run, does its scheduler tick, does the disk take what it saves?

import {
  COLOURED,
  GREEN,
  ORANGE,
  RED,
  SKY,
  TROUBLE,
  bars,
  bigNumber,
  dashed,
  durations,
  each,
  fixed,
  host,
  latest,
  lines,
  newest,
  nothing,
  perennialDashboard,
  row,
  words,
} from './shared';

const eachInstance = (expr: string) => each(expr, 'instance');
const VERSION = each(latest(host('perennial_build_info')), 'instance, version, commit');
const TICK_AGE = `time() - ${host('perennial_scheduler_last_tick_timestamp_seconds')}`;

const statPlace = (title: string, description: string) => ({ title, description, width: 4, height: 4 });

const quantile = (share: number, metric: string, labels: string, matchers = '') =>
  `histogram_quantile(${share}, sum by (le, ${labels}) (rate(${host(`${metric}_bucket`, matchers)}[$__rate_interval])))`;

export const runtime = perennialDashboard({
  uid: 'perennial-runtime',
  title: 'Perennial / Runtime',
  description: 'The process itself: scheduler, store, HTTP, sinks, memory, telemetry.',
  from: 'now-1h',
  variables: [],
})
  .withPanel(
    bigNumber(
      { ...statPlace('Perennial down', 'Instances that Prometheus has not reached for 2 minutes.'), runbook: 'perennialdown', unit: 'short', steps: TROUBLE },
      [{ expr: `sum(max_over_time(${host('up')}[2m]) == bool 0)`, legend: 'down' }],
    ),
  )
  .withPanel(
    bigNumber(
      {
        ...statPlace('Scheduler ticked', 'Since the scheduler last proved to be alive. It does so every few seconds; more than a minute means that no job is started any more.'),
        runbook: 'schedulerstalled',
        unit: 's',
        steps: [[null, GREEN], [60, RED]],
      },
      [{ expr: `max(${TICK_AGE})`, legend: 'ago' }],
    ).decimals(0),
  )
  .withPanel(
    bigNumber(
      {
        ...statPlace('Store', 'Whether a durable write succeeds within a second. While it does not, no refresh begins, so that no token is lost.'),
        runbook: 'storeunhealthy',
        unit: 'none',
        steps: [[null, RED], [1, GREEN]],
      },
      [{ expr: `min(${latest(host('perennial_store_writable'))})`, legend: 'store' }],
    ).mappings([words({ '0': { text: 'not writable', color: RED }, '1': { text: 'writable', color: GREEN } })]),
  )
  .withPanel(
    bigNumber(
      {
        ...statPlace('Not saved', 'Credentials whose newest tokens are only in memory. Do not stop the process: they would be lost.'),
        runbook: 'tokensunsaved',
        unit: 'short',
        steps: TROUBLE,
      },
      [{ expr: `sum(${latest(host('perennial_store_unsaved_credentials'))})`, legend: 'not saved' }],
    ),
  )
  .withPanel(
    bigNumber(
      {
        ...statPlace('Configuration', 'Whether the configuration was read without an error, the last time it was read. If not, the one before is in use.'),
        runbook: 'configreloadfailed',
        unit: 'none',
        steps: [[null, RED], [1, GREEN]],
      },
      [{ expr: `min(${latest(host('perennial_config_last_reload_successful'))})`, legend: 'configuration' }],
    ).mappings([words({ '0': { text: 'refused', color: RED }, '1': { text: 'in use', color: GREEN } })]),
  )
  .withPanel(
    bigNumber(
      {
        ...statPlace('Restarts', 'How often a process was started anew, in the time shown.'),
        runbook: 'perennialrestarting',
        unit: 'short',
        steps: [[null, GREEN], [1, ORANGE]],
      },
      [{ expr: `sum(changes(${host('process_start_time_seconds')}[$__range]))`, legend: 'restarts' }],
    ),
  )
  .withPanel(
    newest(
      {
        title: 'Instances',
        description: 'Which version each instance is, and since when it runs.',
        width: 24,
        height: 5,
      },
      [
        { name: 'Instance', label: 'instance' },
        { name: 'Version', label: 'version', expr: VERSION },
        { name: 'Commit', label: 'commit' },
        {
          name: 'Reached by Prometheus',
          expr: eachInstance(host('up')),
          width: 190,
          cell: COLOURED,
          mappings: [words({ '0': { text: 'no', color: RED }, '1': { text: 'yes', color: GREEN } })],
        },
        {
          name: 'Started',
          expr: `${eachInstance(latest(host('process_start_time_seconds')))} * 1000`,
          unit: 'dateTimeAsIso',
        },
        {
          name: 'Runs for',
          expr: `time() - ${eachInstance(latest(host('process_start_time_seconds')))}`,
          unit: 's',
          decimals: 1,
          mappings: [nothing('–')],
        },
        { name: 'Threads', expr: eachInstance(latest(host('process_threads'))), unit: 'short' },
      ],
    ),
  )
  .withRow(row('Scheduler and store'))
  .withPanel(
    lines(
      {
        title: 'Age of the last tick of the scheduler',
        description: 'A low saw-tooth is healthy. A line that climbs is a scheduler that stands still: see SchedulerStalled in the runbook.',
        width: 8,
        height: 8,
        unit: 's',
      },
      [{ expr: eachInstance(TICK_AGE), legend: '{{instance}}' }],
    ).min(0),
  )
  .withPanel(
    lines(
      {
        title: 'How long the store takes',
        description:
          'Time until a write is durable, 95 of 100, for each step of a refresh: checkout notes that the refresh token is about to be spent, save keeps the new tokens, settle closes the note.',
        width: 8,
        height: 8,
        unit: 's',
      },
      [
        {
          expr: quantile(0.95, 'perennial_store_operation_duration_seconds', 'operation'),
          legend: '{{operation}}',
        },
      ],
    ),
  )
  .withPanel(
    bars(
      {
        title: 'Errors of the store',
        description: 'Writes that failed: a full disk, a damaged file, a lost permission. See StoreUnhealthy in the runbook.',
        width: 8,
        height: 8,
        unit: 'short',
      },
      [
        {
          expr: `sum by (operation) (increase(${host('perennial_store_errors_total')}[$__rate_interval]))`,
          legend: '{{operation}}',
        },
      ],
    ),
  )
  .withRow(row('HTTP and sinks'))
  .withPanel(
    lines(
      {
        title: 'HTTP requests',
        description: 'Requests to Perennial itself, by route and status. A scrape is one too.',
        width: 8,
        height: 8,
        unit: 'reqps',
      },
      [
        {
          expr: `sum by (route, method, status) (rate(${host('perennial_http_request_duration_seconds_count')}[$__rate_interval]))`,
          legend: '{{method}} {{route}} {{status}}',
        },
      ],
    ).min(0),
  )
  .withPanel(
    durations(
      {
        title: 'How long HTTP requests take',
        description: 'Requests to Perennial itself. The brighter, the more requests took that long.',
        width: 8,
        height: 8,
      },
      `sum by (le) (increase(${host('perennial_http_request_duration_seconds_bucket')}[$__rate_interval]))`,
    ),
  )
  .withPanel(
    bars(
      {
        title: 'Deliveries to sinks',
        description: 'Deliveries of an access token, by kind of sink and outcome. A failed one is tried again.',
        width: 8,
        height: 8,
        unit: 'short',
      },
      [
        {
          expr: `sum by (sink, outcome) (increase(${host('perennial_sink_deliveries_total')}[$__rate_interval]))`,
          legend: '{{sink}}: {{outcome}}',
        },
      ],
    )
      .overrideByRegexp('.*: success', [fixed(GREEN)])
      .overrideByRegexp('.*: failure', [fixed(RED)]),
  )
  .withRow(row('Process'))
  .withPanel(
    lines(
      {
        title: 'Memory',
        description: 'Resident memory is what the process really holds. Virtual memory is what it has reserved, which costs nothing.',
        width: 8,
        height: 8,
        unit: 'bytes',
      },
      [
        { expr: eachInstance(host('process_resident_memory_bytes')), legend: '{{instance}}: resident' },
        { expr: eachInstance(host('process_virtual_memory_bytes')), legend: '{{instance}}: virtual' },
      ],
    )
      .min(0)
      .overrideByRegexp('.*: resident', [fixed(SKY)])
      // Ten to a hundred times as much: on the same axis it would flatten the other.
      .overrideByRegexp('.*: virtual', [...dashed(ORANGE), { id: 'custom.axisPlacement', value: 'right' }]),
  )
  .withPanel(
    lines(
      {
        title: 'CPU',
        description: 'Share of one core in use. Prometheus gets whole seconds only, so it moves in steps.',
        width: 8,
        height: 8,
        unit: 'percentunit',
      },
      [{ expr: `sum by (instance) (rate(${host('process_cpu_seconds_total')}[$__rate_interval]))`, legend: '{{instance}}' }],
    ).min(0),
  )
  .withPanel(
    lines(
      {
        title: 'Open files',
        description: 'Files and connections that the process has open, as a share of what it may have open.',
        width: 8,
        height: 8,
        unit: 'percentunit',
      },
      [
        {
          expr: `${eachInstance(host('process_open_fds'))} / ${eachInstance(host('process_max_fds'))}`,
          legend: '{{instance}}',
        },
      ],
    ).min(0),
  )
  .withPanel(
    bars(
      {
        title: 'Spans dropped',
        description: 'Spans of traces that did not reach the OTLP receiver. Only the traces suffer. See TelemetryDropping in the runbook.',
        width: 24,
        height: 6,
        unit: 'short',
      },
      [
        {
          expr: `sum by (instance) (increase(${host('perennial_telemetry_spans_dropped_total')}[$__rate_interval]))`,
          legend: '{{instance}}',
        },
      ],
    ),
  );

