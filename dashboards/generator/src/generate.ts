// Writes Perennial's Grafana dashboards into the folder that it is given.
//
// To change a dashboard, change its file beside this one, run `make dashboards`, and commit the JSON with
// it: that is what Perennial carries and Grafana reads. `fleet.ts`, `credential.ts`, `jobs.ts` and
// `runtime.ts` each describe one dashboard from top to bottom; `shared.ts` has the variables, the colours and
// one maker for each kind of panel. A new panel needs a title, a description for somebody who is
// woken at night, a unit, and a size: a row is 24 wide. Select series by `host`, `ofProvider` or
// `ofCredential`, so that the variables at the top of the dashboard hold for it.
//
// `cargo test --test main dashboards` then checks that the JSON is what this writes, that Grafana's
// types and the rules of its dashboard linter hold, and that every expression finds data in a
// Prometheus that scrapes the demo. A panel that is empty as long as all is well is listed there.

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { Dashboard, Panel, RowPanel } from '@grafana/grafana-foundation-sdk/dashboard';

import { credential } from './credential';
import { fleet } from './fleet';
import { jobs } from './jobs';
import { runtime } from './runtime';

const isRow = (panel: Panel | RowPanel): panel is RowPanel => panel.type === 'row';

/**
 * Numbers the panels by their place, rows and what is folded into them included, and takes out what the SDK
 * writes though nobody asked for it and Grafana's schema does not know it.
 */
function finished(dashboard: Dashboard): Dashboard {
  const panels = (dashboard.panels ?? []).flatMap((panel) => (isRow(panel) ? [panel, ...panel.panels] : [panel]));
  panels.forEach((panel, index) => {
    panel.id = index + 1;
    if (isRow(panel)) {
      return;
    }
    if (panel.type === 'table') {
      delete panel.options.footer;
    }
    for (const link of panel.fieldConfig?.defaults.links ?? []) {
      // A link of a value has less than one of a dashboard, which the SDK takes it for.
      const { title, url, targetBlank } = link;
      Object.keys(link).forEach((key) => delete link[key as keyof typeof link]);
      Object.assign(link, { title, url, targetBlank });
    }
  });
  for (const variable of dashboard.templating.list ?? []) {
    delete variable.auto;
    delete variable.auto_min;
    delete variable.auto_count;
  }
  // Events explain the first graph over time; over all the others they would only be noise.
  const first = panels.find(({ type }) => type === 'timeseries');
  dashboard.annotations?.list?.forEach((annotation) => {
    annotation.filter = { exclude: false, ids: first?.id === undefined ? [] : [first.id] };
  });
  return dashboard;
}

const folder = process.argv[2];
if (folder === undefined) {
  throw new Error('say where to write the dashboards: node build/generate.js FOLDER');
}
for (const [name, builder] of Object.entries({ fleet, credential, jobs, runtime })) {
  const text = JSON.stringify(finished(builder.build()), null, 2);
  writeFileSync(join(folder, `${name}.json`), `${text}\n`);
}
