//! Log lines: text for a person, flat JSON for a machine, both with the trace id.

use std::fmt;

use chrono::{SecondsFormat, Utc};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{self as lines, FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use super::trace_id;
use super::variables::LogFormat;

/// The layer that writes one line for each event. `colour` only touches text.
pub(super) fn layer<S, W>(
    format: LogFormat,
    colour: bool,
    writer: W,
) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    match format {
        LogFormat::Text => lines::layer()
            .with_ansi(colour)
            .event_format(TextLine)
            .with_writer(writer)
            .boxed(),
        LogFormat::Json => lines::layer()
            .with_ansi(false)
            .fmt_fields(JsonFields::new())
            .event_format(JsonLine(
                Format::default()
                    .json()
                    .flatten_event(true)
                    .with_current_span(false)
                    .with_span_list(false)
                    .with_timer(UtcTime(SecondsFormat::Millis)),
            ))
            .with_writer(writer)
            .boxed(),
    }
}

/// RFC 3339 in UTC.
struct UtcTime(SecondsFormat);

impl FormatTime for UtcTime {
    #[allow(
        clippy::disallowed_methods,
        reason = "a log line is stamped with what the machine shows"
    )]
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.write_str(&Utc::now().to_rfc3339_opts(self.0, true))
    }
}

/// `2026-11-23T09:00:00Z  INFO refreshed credential=home trace_id=…`
struct TextLine;

impl<S, N> FormatEvent<S, N> for TextLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        UtcTime(SecondsFormat::Secs).format_time(&mut writer)?;
        let level = *event.metadata().level();
        match colour_of(level).filter(|_| writer.has_ansi_escapes()) {
            Some(colour) => write!(writer, " \x1b[{colour}m{level:>5}\x1b[0m ")?,
            None => write!(writer, " {level:>5} ")?,
        }
        context.format_fields(writer.by_ref(), event)?;
        if let Some(id) = trace_id() {
            write!(writer, " trace_id={id}")?;
        }
        writeln!(writer)
    }
}

/// Only what needs a person's eye has a colour.
fn colour_of(level: Level) -> Option<u8> {
    match level {
        Level::ERROR => Some(31),
        Level::WARN => Some(33),
        _ => None,
    }
}

/// The library's flat JSON, with the trace id as its last field.
struct JsonLine(Format<Json, UtcTime>);

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(id) = trace_id() else {
            return self.0.format_event(context, writer, event);
        };
        let mut line = String::new();
        self.0
            .format_event(context, Writer::new(&mut line), event)?;
        let object = line.trim_end().strip_suffix('}').ok_or(fmt::Error)?;
        writeln!(writer, r#"{object},"trace_id":"{id}"}}"#)
    }
}
