//! Objects with template expressions: a block stands in the object as a word, and its lines take the word's place in the
//! text.

use anyhow::{Context, Result};
use serde_yaml_ng::Value;

/// A file of the chart's `templates` in the making.
#[derive(Default)]
pub(crate) struct Template {
    blocks: Vec<String>,
    condition: Option<&'static str>,
    text: String,
}

impl Template {
    /// The whole file depends on a value.
    pub(crate) fn only_if(&mut self, value: &'static str) {
        self.condition = Some(value);
    }

    /// A word that stands for lines: as an item of a list, as a key without a value, or as a value. `%N` in the lines is the
    /// column of the word plus `N`.
    pub(crate) fn block(&mut self, lines: &str) -> Value {
        self.blocks.push(lines.trim_end().to_owned());
        Value::String(format!("BLOCK-{}-", self.blocks.len() - 1))
    }

    /// Whether it has no object.
    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Appends an object.
    pub(crate) fn object(&mut self, object: &Value) -> Result<()> {
        if !self.text.is_empty() {
            self.text.push_str("---\n");
        }
        self.text.push_str(&serde_yaml_ng::to_string(object).context("YAML")?);
        Ok(())
    }

    /// The file.
    pub(crate) fn text(&self, head: &str) -> Result<String> {
        let mut lines = Vec::new();
        for line in self.text.lines() {
            lines.push(match line.split_once("BLOCK-") {
                Some((before, after)) => self.expand(line, before, after)?,
                None => line.to_owned(),
            });
        }
        let body = lines.join("\n");
        let head = format!("# {head}\n");
        Ok(match self.condition {
            Some(value) => format!("{{{{- if {value} }}}}\n{head}{body}\n{{{{- end }}}}\n"),
            None => format!("{head}{body}\n"),
        })
    }

    fn expand(&self, line: &str, before: &str, after: &str) -> Result<String> {
        let (number, rest) = after.split_once('-').context("a block has no end")?;
        let number: usize = number.parse()?;
        let block = self.blocks.get(number).with_context(|| format!("no block {number}"))?;
        let column = line.len() - line.trim_start().len();
        let alone = matches!(before.trim(), "" | "-");
        if !alone {
            return Ok(format!("{before}{block}{rest}"));
        }
        let lines = block.lines().map(|text| {
            let text = (0..=8).fold(text.to_owned(), |text, add| {
                text.replace(&format!("%{add}"), &(column + add).to_string())
            });
            format!("{}{text}", " ".repeat(column))
        });
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_take_the_place_of_their_words() {
        let mut template = Template::default();
        let object = serde_yaml_ng::from_str::<Value>("{a: {list: [one], port: 1}}").expect("YAML");
        let mut object = object;
        let item = template.block("{{- range .Values.more }}\n- {{ . }}\n{{- end }}");
        object["a"]["list"].as_sequence_mut().expect("a list").push(item);
        object["a"]["port"] = template.block("{{ .Values.port }}");
        let key = template.block("{{- with .Values.map }}\nmap:\n  {{- toYaml . | nindent %2 }}\n{{- end }}");
        object["a"].as_mapping_mut().expect("a map").insert(key, Value::Null);
        template.object(&object).expect("YAML");
        template.only_if(".Values.on");
        assert_eq!(
            template.text("head").expect("text"),
            "{{- if .Values.on }}\n# head\na:\n  list:\n  - one\n  {{- range .Values.more }}\n  - {{ . }}\n  {{- end }}\n  \
             port: {{ .Values.port }}\n  {{- with .Values.map }}\n  map:\n    {{- toYaml . | nindent 4 }}\n  {{- end }}\n\
             {{- end }}\n"
        );
    }
}
