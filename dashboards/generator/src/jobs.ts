// The jobs that Perennial runs: are they on time, do they end, do they succeed?

import {
  BLUE,
  COLOURED,
  GREEN,
  JOB_NAME,
  ORANGE,
  PURPLE,
  RED,
  SKY,
  TROUBLE,
  YELLOW,
  bars,
  bigNumber,
  dashed,
  each,
  fixed,
  host,
  latest,
  lines,
  newest,
  nothing,
  perennialDashboard,
  until,
  words,
} from './shared';

const ofJob = (name: string, matchers = '') => host(name, `job_name=~"$job_name"${matchers && `,${matchers}`}`);

const EACH_JOB = 'instance, job_name';
const eachJob = (expr: string) => each(expr, EACH_JOB);
const INFO = each(latest(ofJob('perennial_job_info')), `${EACH_JOB}, kind, schedule, timezone`);
/** Completes a query to all jobs. */
const ofAll = (expr: string, otherwise = ' * NaN') => `${expr} or on (${EACH_JOB}) ${eachJob(INFO)}${otherwise}`;

/** As in the alert JobOverdue. A firing comes at most half a second late by itself. */
const OVERDUE = `(${until(latest(ofJob('perennial_job_next_run_timestamp_seconds')))} < bool -60) * (${latest(ofJob('perennial_job_paused'))} == bool 0)`;
/** 0 for each job: one without a schedule is not overdue, and one that does not run is not stuck. */
const NONE = `${latest(ofJob('perennial_job_running'))} * 0`;
const RUNNING_FOR = `time() - ${ofJob('perennial_job_running_since_timestamp_seconds')}`;
const TIMEOUT = ofJob('perennial_job_timeout_seconds');

const statPlace = (title: string, description: string) => ({ title, description, width: 4, height: 4, unit: 'short' });

const quantile = (share: number, metric: string) =>
  `histogram_quantile(${share}, sum by (le, job_name) (rate(${ofJob(`${metric}_bucket`)}[$__rate_interval])))`;

export const jobs = perennialDashboard({
  uid: 'perennial-jobs',
  title: 'Perennial / Jobs',
  description: 'The jobs that Perennial runs: schedule, runs, delays, failures.',
  from: 'now-1h',
  variables: [JOB_NAME],
})
  .withPanel(
    bigNumber(
      {
        ...statPlace('Overdue', 'Jobs whose schedule fired more than a minute ago and that have not started. See JobOverdue in the runbook.'),
        runbook: 'joboverdue',
        steps: TROUBLE,
      },
      [{ expr: `sum((${OVERDUE}) or ${NONE})`, legend: 'overdue' }],
    ),
  )
  .withPanel(
    bigNumber(
      {
        ...statPlace('Failing', 'Jobs whose last run failed. A run fails when any of its credentials was not refreshed.'),
        runbook: 'jobfailing',
        steps: TROUBLE,
      },
      [{ expr: `sum(${latest(ofJob('perennial_job_consecutive_failures'))} > bool 0)`, legend: 'failing' }],
    ),
  )
  .withPanel(
    bigNumber(
      {
        ...statPlace('Stuck', 'Jobs with a run that has taken two minutes longer than the time limit of the job. See JobStuck in the runbook.'),
        runbook: 'jobstuck',
        steps: TROUBLE,
      },
      [
        {
          expr: `sum((${RUNNING_FOR} > bool ${TIMEOUT} + 120) or ${NONE})`,
          legend: 'stuck',
        },
      ],
    ),
  )
  .withPanel(
    bigNumber(
      {
        ...statPlace('Missed', 'Firings of a schedule that led to no run, in the time shown: Perennial was down, the last run was still going, or the clock jumped.'),
        runbook: 'jobmissedruns',
        steps: TROUBLE,
      },
      [{ expr: `sum(increase(${ofJob('perennial_job_missed_runs_total')}[$__range]))`, legend: 'missed' }],
    ).decimals(0),
  )
  .withPanel(
    bigNumber(
      { ...statPlace('Paused', 'Jobs that were paused: their schedule does not fire.'), steps: [[null, GREEN], [1, ORANGE]] },
      [{ expr: `sum(${latest(ofJob('perennial_job_paused'))})`, legend: 'paused' }],
    ),
  )
  .withPanel(
    bigNumber(
      { ...statPlace('Running', 'Runs under way now.'), steps: [[null, SKY]] },
      [{ expr: `sum(${latest(ofJob('perennial_job_running'))})`, legend: 'running' }],
    ),
  )
  .withPanel(
    newest(
      {
        title: 'Jobs',
        description:
          'Each job with its schedule. "Next run" in the past is a run that should have started. A job without a schedule runs when its credentials are due.',
        width: 24,
        height: 8,
        sortBy: { column: 'Failures in a row', descending: true },
      },
      [
        { name: 'Job', label: 'job_name' },
        { name: 'Kind', label: 'kind', expr: INFO },
        { name: 'Schedule', label: 'schedule' },
        { name: 'Time zone', label: 'timezone' },
        {
          name: 'Next run in',
          expr: ofAll(eachJob(until(latest(ofJob('perennial_job_next_run_timestamp_seconds'))))),
          unit: 's',
          decimals: 1,
          mappings: [nothing('no schedule')],
        },
        {
          name: 'Last run started',
          expr: ofAll(`${eachJob(latest(ofJob('perennial_job_last_run_timestamp_seconds')))} * 1000`),
          unit: 'dateTimeFromNow',
          mappings: [nothing('never')],
        },
        {
          name: 'Last success',
          expr: ofAll(`${eachJob(latest(ofJob('perennial_job_last_success_timestamp_seconds')))} * 1000`),
          unit: 'dateTimeFromNow',
          mappings: [nothing('never')],
        },
        {
          name: 'Failures in a row',
          expr: eachJob(latest(ofJob('perennial_job_consecutive_failures'))),
          unit: 'short',
          width: 145,
          cell: COLOURED,
          steps: [[null, GREEN], [1, ORANGE], [3, RED]],
        },
        {
          name: 'Time limit of a run',
          expr: ofAll(eachJob(latest(TIMEOUT))),
          unit: 's',
          decimals: 1,
          mappings: [nothing('none')],
        },
        {
          name: 'Paused',
          expr: eachJob(latest(ofJob('perennial_job_paused'))),
          width: 90,
          mappings: [words({ '0': { text: 'no' }, '1': { text: 'paused', color: ORANGE } })],
        },
        { name: 'Instance', label: 'instance' },
      ],
    ),
  )
  .withPanel(
    bars(
      {
        title: 'Runs by outcome',
        description: 'How many runs ended in each step of time, and how.',
        width: 12,
        height: 8,
        unit: 'short',
      },
      [
        {
          expr: `sum by (outcome) (increase(${ofJob('perennial_job_runs_total')}[$__rate_interval]))`,
          legend: '{{outcome}}',
        },
      ],
    )
      .overrideByName('success', [fixed(GREEN)])
      .overrideByName('failure', [fixed(RED)])
      .overrideByName('timeout', [fixed(BLUE)])
      .overrideByName('panic', [fixed(PURPLE)]),
  )
  .withPanel(
    bars(
      {
        title: 'Runs by what started them',
        description:
          'schedule: the schedule fired. due: a credential was due. manual: a person asked. misfire: to make up for a firing that was missed.',
        width: 12,
        height: 8,
        unit: 'short',
      },
      [
        {
          expr: `sum by (trigger) (increase(${ofJob('perennial_job_runs_total')}[$__rate_interval]))`,
          legend: '{{trigger}}',
        },
      ],
    )
      .overrideByName('schedule', [fixed(BLUE)])
      .overrideByName('due', [fixed(SKY)])
      .overrideByName('manual', [fixed(YELLOW)])
      .overrideByName('misfire', [fixed(ORANGE)]),
  )
  .withPanel(
    lines(
      {
        title: 'How long runs take',
        description: 'Half of the runs are faster than the lower line of a job, 95 of 100 faster than the upper one.',
        width: 12,
        height: 8,
        unit: 's',
      },
      [
        { expr: quantile(0.5, 'perennial_job_run_duration_seconds'), legend: '{{job_name}}: half' },
        { expr: quantile(0.95, 'perennial_job_run_duration_seconds'), legend: '{{job_name}}: 95 of 100' },
      ],
    ),
  )
  .withPanel(
    lines(
      {
        title: 'How late runs start',
        description:
          'From the firing of the schedule to the start of the run. Half a second is usual; more means that something holds the scheduler up, or jitter is configured.',
        width: 12,
        height: 8,
        unit: 's',
      },
      [
        { expr: quantile(0.5, 'perennial_job_start_delay_seconds'), legend: '{{job_name}}: half' },
        { expr: quantile(0.95, 'perennial_job_start_delay_seconds'), legend: '{{job_name}}: 95 of 100' },
      ],
    ),
  )
  .withPanel(
    lines(
      {
        title: 'Runs under way',
        description: 'How long the oldest run under way has been going, and the time limit of the job.',
        width: 12,
        height: 8,
        unit: 's',
      },
      [
        { expr: eachJob(RUNNING_FOR), legend: '{{job_name}}: running for' },
        { expr: eachJob(TIMEOUT), legend: '{{job_name}}: time limit' },
      ],
    )
      .min(0)
      .overrideByRegexp('.*: time limit', dashed(RED)),
  )
  .withPanel(
    bars(
      {
        title: 'Missed firings',
        description:
          'Firings of a schedule that led to no run. down: Perennial was not running. overlap: the last run was still going. clock: the clock was set forward over them.',
        width: 12,
        height: 8,
        unit: 'short',
      },
      [
        {
          expr: `sum by (job_name, reason) (increase(${ofJob('perennial_job_missed_runs_total')}[$__rate_interval]))`,
          legend: '{{job_name}}: {{reason}}',
        },
      ],
    ),
  );
