// Grafana's own types, put together so that TypeScript holds a whole dashboard against them: the JSON
// is written behind `const dashboard: GrafanaDashboard = ` and compiled. A key that Grafana does not know, or
// a value of the wrong type, is an error then.

import type {
  AnnotationQuery,
  Dashboard,
  DataSourceRef,
  FieldConfigSource,
  GraphFieldConfig,
  Panel,
  RowPanel,
  TableFieldOptions,
  VariableModel,
} from '@grafana/schema';
import type * as heatmap from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as statetimeline from '@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen';
import type * as table from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type * as timeseries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

/** As JSON has it: the values of an enumeration as plain strings, and nothing demanded that has a default. */
type Json<T> = T extends string
  ? `${T}`
  : T extends (infer Item)[]
    ? Json<Item>[]
    : T extends object
      ? { [Key in keyof T]?: Json<T[Key]> }
      : T;

/** Not in the schema any more since the data sources are plugins: their query types, as far as they are in use. */
interface PrometheusQuery {
  datasource: DataSourceRef;
  refId: string;
  expr: string;
  editorMode?: 'code';
  instant?: boolean;
  range?: boolean;
  format?: 'time_series' | 'table' | 'heatmap';
  legendFormat?: string;
  interval?: string;
}
interface TempoQuery {
  datasource: DataSourceRef;
  refId: string;
  queryType: 'traceql';
  query: string;
  filters: [];
  limit?: number;
  tableType?: 'traces' | 'spans';
}

type Override = NonNullable<FieldConfigSource['overrides']>[number];

type PanelOf<Type extends string, Options, Custom> = Omit<Json<Panel>, 'type' | 'options' | 'fieldConfig' | 'targets'> & {
  type: Type;
  options: Json<Options>;
  fieldConfig: {
    defaults: Omit<Json<FieldConfigSource['defaults']>, 'custom'> & { custom?: Json<Custom> };
    overrides: Override[];
  };
  targets: (PrometheusQuery | TempoQuery)[];
};

type KnownPanel =
  | PanelOf<'stat', stat.Options, never>
  | PanelOf<'table', table.Options, TableFieldOptions>
  | PanelOf<'timeseries', timeseries.Options, GraphFieldConfig>
  | PanelOf<'heatmap', heatmap.Options, heatmap.FieldConfig>
  | PanelOf<'state-timeline', statetimeline.Options, statetimeline.FieldConfig & { spanNulls?: number | boolean }>;

/** What Prometheus's part of Grafana reads beside the schema. `expr` and `step` are for versions before 12. */
interface PrometheusAnnotation {
  expr: string;
  step: string;
  titleFormat: string;
  textFormat: string;
  tagKeys: string;
  useValueForTime: boolean;
  target: PrometheusQuery;
}

export type GrafanaDashboard = Omit<Json<Dashboard>, 'id' | 'panels' | 'annotations' | 'templating'> & {
  id: null;
  uid: string;
  title: string;
  schemaVersion: number;
  panels: (KnownPanel | (Omit<Json<RowPanel>, 'type' | 'panels'> & { type: 'row'; panels: KnownPanel[] }))[];
  annotations: { list?: (Omit<Json<AnnotationQuery>, 'target'> & PrometheusAnnotation)[] };
  templating: { list: (Json<VariableModel> & { definition?: string })[] };
};
