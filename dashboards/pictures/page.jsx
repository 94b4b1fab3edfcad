// Runs in the browser: a dashboard whose questions are answered, drawn with Grafana's components.
import { useEffect, useRef } from 'react';
import { flushSync } from 'react-dom';
import { createRoot } from 'react-dom/client';
import { lastValueFrom } from 'rxjs';
import * as schemes from 'd3-scale-chromatic';
import {
  FieldConfigOptionsRegistry,
  ThemeContext,
  applyFieldOverrides,
  cacheFieldDisplayNames,
  createTheme,
  dateTime,
  formattedValueToString,
  getDisplayValueAlignmentFactors,
  getFieldDisplayName,
  getFieldDisplayValues,
  getFieldSeriesColor,
  getValueFormat,
  standardTransformers,
  standardTransformersRegistry,
  transformDataFrame,
} from '@grafana/data';
import { BigValue, GlobalStyles, PanelChrome, TimeSeries, VizLegend, VizRepeater } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';

const grafanaRange = ({ from, to }) => {
  const [start, end] = [dateTime(from), dateTime(to)];
  return { from: start, to: end, raw: { from: start, to: end } };
};

const theme = createTheme({ colors: { mode: 'dark' } });
const TIME_ZONE = 'utc';
const replaceVariables = (text) => text; // That was done before.
const GAP = 8; // Grafana's grid: 24 columns, rows of 30 pixels, 8 between them.

standardTransformersRegistry.setInit(() =>
  [...new Set(Object.values(standardTransformers))].map((transformer) => ({
    id: transformer.id,
    aliasIds: transformer.aliasIds,
    name: transformer.name,
    transformation: () => Promise.resolve(transformer),
    editor: () => null,
  })),
);

const STANDARD = ['unit', 'min', 'max', 'decimals', 'noValue', 'thresholds', 'mappings', 'links', 'color'];

/** Grafana's rules for defaults and overrides need to know every property that a panel may set. */
function propertiesOf({ defaults, overrides }) {
  const custom = [
    ...Object.keys(defaults.custom ?? {}).map((path) => `custom.${path}`),
    ...overrides.flatMap(({ properties }) => properties.map(({ id }) => id).filter((id) => id.startsWith('custom.'))),
  ];
  const registry = new FieldConfigOptionsRegistry();
  for (const id of new Set([...STANDARD, ...custom])) {
    const path = id.replace(/^custom\./, '');
    const isCustom = path !== id;
    registry.register({ id, path, isCustom, name: id, shouldApply: () => true, process: (value) => value });
  }
  return registry;
}

async function withData({ panel, frames }) {
  const answered = frames.map((frame) => ({ ...frame, length: frame.fields[0].values.length }));
  const data = await lastValueFrom(transformDataFrame(panel.transformations ?? [], answered, { interpolate: (text) => text }));
  const { fieldConfig } = panel;
  const properties = fieldConfig.overrides.flatMap(({ properties }) => properties);
  const thresholds = properties.filter(({ id }) => id === 'thresholds').map(({ value }) => value);
  for (const { steps } of [fieldConfig.defaults.thresholds, ...thresholds].filter(Boolean)) {
    steps[0].value = -Infinity; // JSON has no word for it.
  }
  const fieldConfigRegistry = propertiesOf(fieldConfig);
  const drawn = applyFieldOverrides({ data, fieldConfig, fieldConfigRegistry, replaceVariables, theme, timeZone: TIME_ZONE });
  cacheFieldDisplayNames(drawn);
  // Curves are joined into one frame, where the names that give the colours are lost.
  const byName = drawn.flatMap(({ fields }) => fields).filter(({ config }) => config.color?.mode === 'palette-classic-by-name');
  byName.forEach((field) => {
    field.config.color = { mode: 'fixed', fixedColor: getFieldSeriesColor(field, theme).color };
  });
  return { panel, frames: drawn };
}

const Nothing = ({ panel }) => (
  <div style={{ height: '100%', display: 'flex', alignItems: 'center', justifyContent: 'center', color: theme.colors.text.secondary }}>
    {panel.fieldConfig.defaults.noValue ?? 'No data'}
  </div>
);

function Stat({ panel, frames, width, height }) {
  const { orientation, reduceOptions, wideLayout, ...options } = panel.options;
  const values = () =>
    getFieldDisplayValues({ fieldConfig: panel.fieldConfig, reduceOptions, replaceVariables, theme, data: frames, timeZone: TIME_ZONE });
  return (
    <VizRepeater
      {...{ width, height, orientation }}
      getValues={values}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={({ value, ...place }) => (
        <BigValue {...options} {...place} theme={theme} value={value.display} disableWideLayout={wideLayout === false} />
      )}
      source={frames}
      renderCounter={0}
      autoGrid
      itemSpacing={3}
    />
  );
}

function Table({ panel, frames: [data], range, width, height }) {
  if (!data?.length) {
    return <Nothing panel={panel} />;
  }
  const { sortBy, cellHeight } = panel.options;
  return <TableNG {...{ data, width, height, sortBy, cellHeight }} structureRev={1} timeRange={grafanaRange(range)} />;
}

/** As Grafana does before it draws: what is no number is a gap. */
const withoutNaN = (field) =>
  field.type === 'number' ? { ...field, values: field.values.map((value) => (Number.isFinite(value) ? value : null)) } : field;

function Curves({ panel, frames, range, width, height, annotations }) {
  const curves = frames.filter(({ length }) => length > 0).map((frame) => ({ ...frame, fields: frame.fields.map(withoutNaN) }));
  if (curves.length === 0) {
    return <Nothing panel={panel} />;
  }
  return (
    <TimeSeries
      frames={curves}
      structureRev={1}
      {...{ width, height }}
      timeRange={grafanaRange(range)}
      timeZone={TIME_ZONE}
      legend={panel.options.legend}
      options={panel.options}
    >
      {(builder) => {
        builder.addHook('draw', (plot) => annotations.filter(marks(panel)).forEach((one) => drawAnnotation(plot, one)));
        return null;
      }}
    </TimeSeries>
  );
}

const marks = ({ id }) => ({ filter }) => !filter || filter.ids.includes(id) !== filter.exclude;

/** As Grafana marks them: a dashed line, a wedge below the axis, and a veil over a stretch of time. */
function drawAnnotation(plot, { time, until, color }) {
  const { left, top, width, height } = plot.bbox;
  const ratio = devicePixelRatio;
  const place = (at) => Math.max(left, Math.min(left + width, plot.valToPos(at, 'x', true)));
  const [from, to] = [place(time), place(until)];
  const paint = theme.visualization.getColorByName(color ?? 'blue');
  const { ctx } = plot;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = paint;
  if (to > from) {
    ctx.globalAlpha = 0.15;
    ctx.fillRect(from, top, to - from, height);
    ctx.globalAlpha = 1;
    ctx.fillRect(from, top + height, to - from, 4 * ratio);
  } else {
    ctx.beginPath();
    ctx.moveTo(from, top + height);
    ctx.lineTo(from - 4 * ratio, top + height + 5 * ratio);
    ctx.lineTo(from + 4 * ratio, top + height + 5 * ratio);
    ctx.fill();
  }
  ctx.setLineDash([5 * ratio, 5 * ratio]);
  ctx.lineWidth = ratio;
  ctx.beginPath();
  ctx.moveTo(from, top);
  ctx.lineTo(from, top + height);
  ctx.stroke();
  ctx.restore();
}

/** A canvas of our own, for the two kinds of panel that Grafana keeps to itself. */
function Canvas({ width, height, draw }) {
  const canvas = useRef();
  useEffect(() => {
    const ctx = canvas.current.getContext('2d');
    ctx.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    ctx.clearRect(0, 0, width, height);
    ctx.font = `12px ${theme.typography.fontFamily}`;
    draw(ctx);
  });
  return <canvas ref={canvas} width={width * devicePixelRatio} height={height * devicePixelRatio} style={{ width, height }} />;
}

const AXIS = 24;
const plotted = (range, left, right) => (at) =>
  left + ((at - range.from) / (range.to - range.from)) * (right - left);

function drawTimeAxis(ctx, range, left, right, y) {
  const steps = [10, 30, 60, 120, 300, 600, 1800, 3600, 10800, 21600, 43200, 86400].map((seconds) => seconds * 1000);
  const span = range.to - range.from;
  const step = steps.find((one) => ((right - left) * one) / span > 70) ?? steps.at(-1);
  const x = plotted(range, left, right);
  ctx.fillStyle = theme.colors.text.primary;
  ctx.textAlign = 'center';
  for (let at = Math.ceil(range.from / step) * step; at <= range.to; at += step) {
    ctx.fillText(dateTime(at).utc().format(step < 60_000 ? 'HH:mm:ss' : 'HH:mm'), x(at), y + 16);
  }
}

function StateTimeline({ panel, frames, range, width, height }) {
  const rows = frames.map((frame) => {
    const [time, field] = frame.fields;
    return { times: time.values, field, name: getFieldDisplayName(field, frame, frames) };
  });
  const words = rows.flatMap(({ field }) => [...new Set(field.values)].map((value) => field.display(value)));
  const items = [...new Map(words.map(({ text, color }) => [text, { label: text, color, yAxis: 1 }])).values()];
  const bottom = height - AXIS - 28; // That is as high as the legend.
  const rowHeight = bottom / rows.length;
  const thick = rowHeight * panel.options.rowHeight;
  const draw = (ctx) => {
    const left = 12 + Math.max(...rows.map(({ name }) => ctx.measureText(name).width));
    const x = plotted(range, left, width - 8);
    rows.forEach(({ times, field, name }, row) => {
      const y = row * rowHeight + (rowHeight - thick) / 2;
      ctx.fillStyle = theme.colors.text.primary;
      ctx.textAlign = 'right';
      ctx.textBaseline = 'middle';
      ctx.fillText(name, left - 8, y + thick / 2);
      for (let i = 0; i < times.length; ) {
        let next = i + 1;
        while (next < times.length && field.values[next] === field.values[i]) {
          next += 1;
        }
        const shown = field.display(field.values[i]);
        const [from, to] = [Math.max(x(times[i]), left), x(times[next] ?? range.to)];
        ctx.fillStyle = shown.color;
        ctx.globalAlpha = panel.fieldConfig.defaults.custom.fillOpacity / 100;
        ctx.fillRect(from, y, Math.max(to - from - 1, 1), thick);
        ctx.globalAlpha = 1;
        const text = formattedValueToString(shown);
        if (ctx.measureText(text).width + 8 < to - from) {
          ctx.fillStyle = theme.colors.getContrastText(shown.color);
          ctx.textAlign = 'left';
          ctx.fillText(text, from + 5, y + thick / 2);
        }
        i = next;
      }
    });
    ctx.textBaseline = 'alphabetic';
    drawTimeAxis(ctx, range, left, width - 8, bottom);
  };
  return (
    <>
      <Canvas {...{ width, draw }} height={bottom + AXIS} />
      <VizLegend items={items} displayMode="list" placement="bottom" />
    </>
  );
}

function HeatMap({ panel, frames: [frame], range, width, height }) {
  if (frame.length === 0) {
    return <Nothing panel={panel} />;
  }
  const [time, ...all] = frame.fields;
  const used = all.map(({ values }, row) => (values.some((count) => count > 0) ? row : -1)).filter((row) => row >= 0);
  const buckets = all.slice(Math.max(0, used[0] - 1), used.at(-1) + 1);
  const most = Math.max(...buckets.flatMap(({ values }) => values));
  const { scheme, steps, exponent } = panel.options.color;
  const ramp = schemes[`interpolate${scheme}`];
  const unit = getValueFormat(panel.options.yAxis.unit);
  const step = time.values[1] - time.values[0];
  const draw = (ctx) => {
    const left = 60;
    const x = plotted(range, left, width - 8);
    const rowHeight = (height - AXIS - 8) / buckets.length; // The highest bound needs half a line above.
    buckets.forEach(({ values, name }, row) => {
      const y = height - AXIS - (row + 1) * rowHeight;
      ctx.fillStyle = theme.colors.text.primary;
      ctx.textAlign = 'right';
      ctx.fillText(name === '+Inf' ? '+Inf' : formattedValueToString(unit(Number(name))), left - 8, y + 5);
      values.forEach((count, i) => {
        const strength = Math.ceil((count / most) ** exponent * steps) / steps;
        if (count > 0 && time.values[i] >= range.from) {
          ctx.fillStyle = ramp(strength);
          ctx.fillRect(x(time.values[i]), y, x(time.values[i] + step) - x(time.values[i]) - 1, rowHeight - 1);
        }
      });
    });
    drawTimeAxis(ctx, range, left, width - 8, height - AXIS);
  };
  return <Canvas {...{ width, height, draw }} />;
}

const DRAWN = { stat: Stat, table: Table, timeseries: Curves, 'state-timeline': StateTimeline, heatmap: HeatMap };

function Panel({ panel, frames, range, annotations, rectangle: { left, top, width, height } }) {
  const Drawing = DRAWN[panel.type];
  return (
    <div style={{ position: 'absolute', left, top, width, height }}>
      <PanelChrome
        {...{ width, height }}
        title={panel.title}
        description={panel.description}
        padding={panel.type === 'table' ? 'none' : 'md'}
      >
        {(innerWidth, innerHeight) =>
          <Drawing {...{ panel, frames, range, annotations }} width={innerWidth} height={innerHeight} />
        }
      </PanelChrome>
    </div>
  );
}

function Heading({ title, variables, range }) {
  const box = { border: `1px solid ${theme.colors.border.medium}`, borderRadius: 2, padding: '3px 8px', background: theme.colors.background.primary };
  return (
    <div style={{ position: 'absolute', inset: `${GAP}px ${2 * GAP}px auto`, display: 'flex', gap: 12, alignItems: 'center' }}>
      <span style={{ fontSize: 18, fontWeight: 500 }}>{title}</span>
      {variables.map(({ label, text }) => (
        <span key={label}>
          <span style={{ color: theme.colors.text.secondary, fontSize: 12 }}>{label} </span>
          <span style={box}>{text}</span>
        </span>
      ))}
      <span style={{ ...box, marginLeft: 'auto' }}>
        {dateTime(range.from).utc().format('YYYY-MM-DD HH:mm')} to {dateTime(range.to).utc().format('HH:mm')} UTC
      </span>
    </div>
  );
}

/** Draws `asked`: {title, variables, range, annotations, width, panels: [{panel, frames}]}. */
window.draw = async (asked) => {
  const column = (asked.width - 2 * 2 * GAP - 23 * GAP) / 24;
  const head = 48;
  const rectangle = ({ x, y, w, h }) => ({
    left: 2 * GAP + x * (column + GAP),
    top: head + y * (30 + GAP),
    width: w * column + (w - 1) * GAP,
    height: h * 30 + (h - 1) * GAP,
  });
  const panels = await Promise.all(asked.panels.map((one) => (one.panel.type === 'row' ? one : withData(one))));
  const bottom = Math.max(...panels.map(({ panel }) => rectangle(panel.gridPos)).map(({ top, height }) => top + height));
  document.body.style.height = `${bottom + 2 * GAP}px`;
  const root = createRoot(document.getElementById('dashboard'));
  const show = (children) =>
    flushSync(() =>
      root.render(
        <ThemeContext.Provider value={theme}>
          <GlobalStyles />
          {children}
        </ThemeContext.Provider>,
      ),
    );
  show(null); // The styles name the fonts, and canvases measure text only once.
  await Promise.all([400, 500].map((weight) => document.fonts.load(`${weight} 12px Inter`)));
  show(
    <>
      <Heading {...asked} />
      {panels.map(({ panel, frames }) =>
        panel.type === 'row' ? (
          <div key={panel.id} style={{ position: 'absolute', ...rectangle(panel.gridPos), fontSize: 16, fontWeight: 500, paddingTop: 3 }}>
            {panel.collapsed ? '›' : '⌄'} {panel.title}
          </div>
        ) : (
          <Panel key={panel.id} {...asked} {...{ panel, frames }} rectangle={rectangle(panel.gridPos)} />
        ),
      )}
    </>,
  );
};
