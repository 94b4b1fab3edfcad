// Draws the pictures of the documentation: starts the demo with credentials in trouble and a
// Prometheus, lets them run until the curves have a history, draws, and stops both.
//
//   PERENNIAL=path/to/perennial node all.mjs [MINUTES]     (13)
//
// After 13 minutes each kind of trouble is there: the demo's last login ends after 15, and the
// warning before it is worth seeing.
import { spawn } from 'node:child_process';
import { existsSync, openSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { picture } from './draw.mjs';

const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), '../..');
const PERENNIAL = resolve(process.env.PERENNIAL ?? join(ROOT, 'target/debug/perennial'));
const RULES = join(ROOT, 'alerts/perennial.rules.yml');
const MINUTE = 60_000;
const SCRAPE = 2000; // The demo's tokens live for a minute.
const PICTURES = [
  { dashboard: 'fleet', given: {}, rows: 23 },
  { dashboard: 'credential', given: { credential: 'living-room' }, rows: 32 },
];

const minutes = Number(process.argv[2] ?? 13);
const folder = await mkdtemp(join(tmpdir(), 'perennial-pictures-'));
const started = [];
const stopping = new AbortController();
process.once('SIGINT', () => stopping.abort()).once('SIGTERM', () => stopping.abort());
try {
  const [here, there] = [await freePort(), await freePort()];
  start(PERENNIAL, ['demo', '--troubled', '--listen', `127.0.0.1:${here}`]);
  await writeFile(join(folder, 'prometheus.yml'), configuration(`127.0.0.1:${here}`));
  start('prometheus', [
    `--config.file=${join(folder, 'prometheus.yml')}`,
    `--storage.tsdb.path=${join(folder, 'data')}`,
    `--web.listen-address=127.0.0.1:${there}`,
    '--log.level=error',
  ]);
  const url = `http://127.0.0.1:${there}`;
  await untilSamplesCover(url, minutes);
  const to = Date.now();
  for (const { dashboard, ...chosen } of PICTURES) {
    const png = await picture({
      dashboard: JSON.parse(await readFile(join(ROOT, 'dashboards', `${dashboard}.json`), 'utf8')),
      url,
      from: to - minutes * MINUTE,
      to,
      scrape: SCRAPE,
      scale: 2,
      ...chosen,
    });
    await writeFile(join(ROOT, 'docs', `${dashboard}.png`), png);
    console.log(`docs/${dashboard}.png: ${Math.round(png.length / 1000)} kB`);
  }
} finally {
  await Promise.all(started.map(stop));
  await rm(folder, { recursive: true, force: true });
}

function start(program, parameters) {
  const said = join(folder, `${started.length}.log`);
  const child = spawn(program, parameters, { cwd: folder, stdio: ['ignore', 'ignore', openSync(said, 'w')] });
  const ended = new Promise((done) => child.once('exit', done).once('error', done));
  started.push({ program, said, child, ended });
}

async function stop({ child, ended }) {
  child.kill('SIGTERM');
  await ended;
}

/** Waits until the oldest sample is `minutes` old. */
async function untilSamplesCover(url, minutes) {
  const question = `query=${encodeURIComponent(`up offset ${Math.round(minutes * 60)}s`)}`;
  const deadline = Date.now() + (minutes + 2) * MINUTE;
  console.log(`letting the demo run for ${minutes} minutes`);
  for (;;) {
    const dead = started.find(({ child }) => !child.pid || child.exitCode !== null);
    if (dead) {
      throw new Error(`${dead.program} did not start, or ended:\n${await readFile(dead.said, 'utf8')}`);
    }
    const answer = await fetch(`${url}/api/v1/query?${question}`).then((response) => response.json()).catch(() => undefined);
    if (answer?.data?.result.some(({ value }) => value[1] === '1')) {
      return;
    }
    if (Date.now() > deadline) {
      throw new Error('no samples of the demo came');
    }
    await pause(SCRAPE, undefined, { signal: stopping.signal });
  }
}

function configuration(target) {
  const rules = existsSync(RULES) ? `rule_files: ['${RULES}']\n` : '';
  return `global: { scrape_interval: ${SCRAPE}ms, evaluation_interval: ${SCRAPE}ms }
${rules}scrape_configs:
  - job_name: perennial
    static_configs: [{ targets: ['${target}'] }]
`;
}

function freePort() {
  return new Promise((done, failed) => {
    const server = createServer().once('error', failed);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address();
      server.close(() => done(port));
    });
  });
}
