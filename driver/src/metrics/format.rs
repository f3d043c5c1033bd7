//! The formats of `/metrics`: OpenMetrics 1.0 and Prometheus' text format 0.0.4, as the scraper asks (RFC 9110, 12.5.1).

use std::{
    cmp::Reverse,
    fmt::{self, Write as _},
};

use http::{HeaderMap, header::ACCEPT};

/// A format of the exposition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `application/openmetrics-text; version=1.0.0`.
    OpenMetrics,
    /// `text/plain; version=0.0.4`: what a scraper gets that asks for no format of ours.
    #[default]
    Text,
}

impl Format {
    /// The format that a request asks for. OpenMetrics must be asked for by name.
    #[must_use]
    pub fn accepted(headers: &HeaderMap) -> Self {
        let lines = headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok());
        let ranges: Vec<Range> = lines.flat_map(|line| line.split(',')).filter_map(Range::parse).collect();
        let quality = |format| {
            let of = ranges.iter().filter_map(|range| Some((range.matches(format)?, Reverse(range.quality))));
            // The most specific range decides; of two, the one that refuses or likes less.
            of.max().map(|(_, Reverse(quality))| quality)
        };
        let named = ranges.iter().any(|range| range.name == OPEN_METRICS);
        match (quality(Self::OpenMetrics), quality(Self::Text)) {
            (Some(open), text) if named && open > 0 && open >= text.unwrap_or(0) => Self::OpenMetrics,
            _ => Self::Text,
        }
    }

    /// Value of the header `Content-Type`.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

const OPEN_METRICS: &str = "application/openmetrics-text";
const TEXT: &str = "text/plain";

/// One element of the header `Accept`.
struct Range {
    name: String,
    version: Option<String>,
    /// Thousandths.
    quality: u16,
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let name = parts.next().filter(|name| name.contains('/'))?.to_ascii_lowercase();
        let mut range = Self { name, version: None, quality: 1000 };
        for parameter in parts {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = value.trim().trim_matches('"');
            match key.trim().to_ascii_lowercase().as_str() {
                "q" => range.quality = quality(value)?,
                "version" => range.version = Some(value.to_owned()),
                _ => {}
            }
        }
        Some(range)
    }

    /// How closely it describes a format, if it does.
    fn matches(&self, format: Format) -> Option<u8> {
        let (name, group, versions) = match format {
            // What we write is right in both.
            Format::OpenMetrics => (OPEN_METRICS, "application/*", &["1.0.0", "0.0.1"][..]),
            Format::Text => (TEXT, "text/*", &["0.0.4"][..]),
        };
        match (&self.version, self.name.as_str()) {
            (Some(version), asked) if asked == name => versions.contains(&version.as_str()).then_some(3),
            (None, asked) if asked == name => Some(2),
            (_, asked) if asked == group => Some(1),
            (_, "*/*") => Some(0),
            _ => None,
        }
    }
}

/// `0` to `1` with at most three decimals, in thousandths.
fn quality(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let thousandths: u16 = format!("{decimals:0<3}").parse().ok()?;
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(1000),
        _ => None,
    }
}

/// The text format of an OpenMetrics exposition without exemplars and timestamps.
pub(super) fn text_of(open_metrics: &str) -> Result<String, fmt::Error> {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help: Option<(&str, &str)> = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = Some(rest.split_once(' ').unwrap_or((rest, "")));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            // There a metric has the name of its samples.
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                same => ("", same),
            };
            if let Some((_, help)) = help.take().filter(|(of, _)| *of == name) {
                writeln!(text, "# HELP {name}{suffix} {}", help.replace("\\\"", "\""))?;
            }
            writeln!(text, "# TYPE {name}{suffix} {kind}")?;
        } else if !line.starts_with('#') {
            writeln!(text, "{line}")?;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(lines: &[&str]) -> Format {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT, line.parse().unwrap());
        }
        Format::accepted(&headers)
    }

    #[test]
    fn a_scraper_gets_the_format_it_likes_best() {
        // What Prometheus 2 and 3 send.
        let two = "application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let three = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for open in [two, three, "application/openmetrics-text", "Application/OpenMetrics-Text; Q=0.5"] {
            assert_eq!(accepted(&[open]), Format::OpenMetrics, "{open}");
        }
        assert_eq!(
            accepted(&["text/plain;q=0.2", "application/openmetrics-text;q=0.9"]),
            Format::OpenMetrics
        );
        let plain = [
            "text/plain;version=0.0.4",
            "text/plain",
            "*/*",
            "application/*",
            "application/json",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=0.2,text/plain;q=0.9",
            "application/openmetrics-text;version=2.0.0,text/plain",
            "application/openmetrics-text;q=7",
            "rubbish",
            "",
        ];
        for text in plain {
            assert_eq!(accepted(&[text]), Format::Text, "{text}");
        }
        assert_eq!(accepted(&[]), Format::Text);
    }

    #[test]
    fn the_text_format_names_metrics_by_their_samples() {
        let open = "# HELP a_b Things.\n# TYPE a_b counter\na_b_total{x=\"# HELP\"} 1\n\
                    # HELP t_seconds Time.\n# TYPE t_seconds histogram\n# UNIT t_seconds seconds\n\
                    t_seconds_sum 0.5\nt_seconds_count 1\nt_seconds_bucket{le=\"+Inf\"} 1\n\
                    # HELP build Version.\n# TYPE build info\nbuild_info{version=\"1\"} 1\n\
                    # TYPE g gauge\ng 2\n# EOF\n";
        let text = "# HELP a_b_total Things.\n# TYPE a_b_total counter\na_b_total{x=\"# HELP\"} 1\n\
                    # HELP t_seconds Time.\n# TYPE t_seconds histogram\n\
                    t_seconds_sum 0.5\nt_seconds_count 1\nt_seconds_bucket{le=\"+Inf\"} 1\n\
                    # HELP build_info Version.\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n\
                    # TYPE g gauge\ng 2\n";
        assert_eq!(text_of(open).unwrap(), text);
    }
}
