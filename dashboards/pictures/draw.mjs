// Draws one dashboard file into a PNG, with the data of a running Prometheus.
//
//   node draw.mjs ../fleet.json --prometheus http://127.0.0.1:9090 --range 15m --out fleet.png
//     --var credential=kitchen   chooses a variable's value
//     --scrape 2s                the interval of the scrapes (15s)
//     --rows 30                  only what stands in the first rows of the grid
//     --scale 2                  pixels per CSS pixel (1)
//
// Grafana's own, unchanged: transformations, units, thresholds, mappings, overrides and colours
// (@grafana/data), time series, stats, tables and the frames of panels (@grafana/ui), theme and fonts.
// Made like Grafana's, as far as these dashboards need it: variables, queries and their steps, the
// grid, annotations, state timelines and heat maps (those two are canvases of our own).
// Missing: the menus around a dashboard, whatever asks Tempo, folded rows, tooltips. Times are UTC.
import { existsSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { build } from 'esbuild';
import { chromium } from 'playwright-core';
import sharp from 'sharp';
import { annotationsOf, framesOf, milliseconds, prometheus, substitute, variablesOf } from './questions.mjs';

const HERE = dirname(fileURLToPath(import.meta.url));
const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium';
const WIDTH = 1600;
const ORIGIN = 'http://pictures.invalid'; // Every request to it is answered below.

/** The picture of a dashboard, as the bytes of a PNG. */
export async function picture({ dashboard, url, from, to, scrape, given = {}, rows = Infinity, scale = 1 }) {
  const source = prometheus(url);
  const range = { from, to, scrape };
  const variables = await variablesOf(dashboard, source, range, given);
  const named = (panel) =>
    JSON.parse(JSON.stringify(panel), (_, value) => (typeof value === 'string' ? substitute(value, variables) : value));
  const panels = dashboard.panels.filter(({ gridPos }) => gridPos.y < rows).map(async (panel) => {
    const width = Math.floor((panel.gridPos.w * WIDTH) / 24);
    return { panel: named(panel), frames: await framesOf(panel, width, variables, source, range) };
  });
  const asked = {
    title: dashboard.title,
    variables: Object.values(variables),
    range,
    width: WIDTH,
    annotations: await annotationsOf(dashboard, variables, source, range),
    panels: await Promise.all(panels),
  };
  if (!existsSync(CHROMIUM)) {
    throw new Error(`no browser at ${CHROMIUM}: apt-get install chromium, or say where one is in CHROMIUM`);
  }
  const browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  });
  try {
    return await drawn(browser, asked, scale);
  } finally {
    await browser.close();
  }
}

async function drawn(browser, asked, scale) {
  const page = await browser.newPage({ viewport: { width: WIDTH, height: 900 }, deviceScaleFactor: scale });
  const troubles = [];
  page.on('pageerror', (error) => troubles.push(error.stack));
  page.on('console', (message) => message.type() === 'error' && troubles.push(message.text()));
  const files = await bundle();
  const frame = '<link rel=stylesheet href=/page.css><body><div id=dashboard></div><script src=/page.js></script>';
  await page.route('**/*', async (route) => {
    const { pathname } = new URL(route.request().url());
    if (pathname === '/') {
      await route.fulfill({ contentType: 'text/html', body: frame });
    } else if (files[pathname]) {
      await route.fulfill({ contentType: pathname.endsWith('.js') ? 'text/javascript' : 'text/css', body: files[pathname] });
    } else {
      const path = partOf(pathname);
      await route.fulfill(path ? { path } : { status: 404 });
    }
  });
  await page.goto(ORIGIN);
  await page.evaluate((all) => window.draw(all), asked);
  // Icons come last.
  const described = asked.panels.filter(({ panel }) => panel.description).length;
  const icons = (count) => document.querySelectorAll('[data-testid=title-items-container] svg:not(:empty)').length === count;
  await page.waitForFunction(icons, described).catch(({ message }) => troubles.push(message));
  if (troubles.length > 0) {
    throw new Error(troubles.join('\n'));
  }
  const height = await page.evaluate(() => document.body.offsetHeight);
  await page.setViewportSize({ width: WIDTH, height });
  const shot = await page.screenshot();
  return sharp(shot).png({ palette: true, quality: 95, effort: 10 }).toBuffer();
}

async function bundle() {
  const built = await build({
    entryPoints: [join(HERE, 'page.jsx')],
    bundle: true,
    write: false,
    outdir: '/',
    minify: true,
    jsx: 'automatic',
    define: { 'process.env.NODE_ENV': '"production"', global: 'window' },
    external: ['monaco-editor', 'react-monaco-editor', 'ol'], // editors and maps: loaded when first shown, so never
    banner: { js: `window.__grafana_public_path__ = '${ORIGIN}/public/';` },
    logLevel: 'error',
  });
  return Object.fromEntries(built.outputFiles.map(({ path, text }) => [path, text]));
}

/** Where a font or an icon that Grafana would serve lies among the packages. */
function partOf(pathname) {
  const require = createRequire(import.meta.url);
  const [, weight] = /fonts\/inter\/Inter-(Regular|Medium)\.woff2$/.exec(pathname) ?? [];
  if (weight) {
    return require.resolve(`@fontsource/inter/files/inter-latin-${weight === 'Regular' ? 400 : 500}-normal.woff2`);
  }
  const [, icon] = /^\/public\/build\/(img\/icons\/.+\.svg)$/.exec(pathname) ?? [];
  return icon && join(dirname(require.resolve('@grafana/ui/package.json')), 'dist/public', icon);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { positionals, values } = parseArgs({
    allowPositionals: true,
    options: {
      prometheus: { type: 'string', default: 'http://127.0.0.1:9090' },
      range: { type: 'string', default: '15m' },
      scrape: { type: 'string', default: '15s' },
      var: { type: 'string', multiple: true, default: [] },
      rows: { type: 'string' },
      scale: { type: 'string', default: '1' },
      out: { type: 'string', default: 'dashboard.png' },
    },
  });
  const to = Date.now();
  const png = await picture({
    dashboard: JSON.parse(await readFile(positionals[0], 'utf8')),
    url: values.prometheus,
    from: to - milliseconds(values.range),
    to,
    scrape: milliseconds(values.scrape),
    given: Object.fromEntries(values.var.map((one) => one.split('='))),
    rows: values.rows && Number(values.rows),
    scale: Number(values.scale),
  });
  await writeFile(values.out, png);
  console.log(`${values.out}: ${Math.round(png.length / 1000)} kB`);
}
