//! What a person sees: headings, tables, and a line for each thing that was checked.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Details shown of many.
const DETAILS: usize = 5;

/// One statement about the lab, and whether it held.
#[derive(Clone, Debug)]
pub struct Check {
    /// The step it belongs to.
    pub step: String,
    /// The statement, in the present tense.
    pub what: String,
    /// Whether it held.
    pub held: bool,
}

/// Writes the lab's progress and remembers what was checked.
#[derive(Debug)]
pub struct Show {
    color: bool,
    /// Everything written, for whoever wants it only after a failure.
    transcript: Option<Mutex<String>>,
    step: String,
    started: Instant,
    checks: Vec<Check>,
}

impl Default for Show {
    fn default() -> Self {
        Self::new()
    }
}

impl Show {
    /// Colours are used on a terminal, unless `NO_COLOR` is set (no-color.org).
    pub fn new() -> Self {
        let asked_not_to = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let color = std::io::stdout().is_terminal() && !asked_not_to;
        Self {
            color,
            transcript: None,
            step: String::new(),
            started: Instant::now(),
            checks: Vec::new(),
        }
    }

    /// Writes nothing, but keeps a [`transcript`](Self::transcript).
    pub fn silent() -> Self {
        Self { color: false, transcript: Some(Mutex::default()), ..Self::new() }
    }

    /// What a silent show would have written.
    pub fn transcript(&self) -> String {
        self.transcript
            .as_ref()
            .map(|text| text.lock().unwrap_or_else(PoisonError::into_inner).clone())
            .unwrap_or_default()
    }

    fn paint(&self, code: &str, text: impl Display) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    fn line(&self, text: impl Display) {
        if let Some(transcript) = &self.transcript {
            *transcript.lock().unwrap_or_else(PoisonError::into_inner) += &format!("{text}\n");
            return;
        }
        // A closed pipe (`sluice-lab run | head`) must not end the lab before it has cleaned up.
        drop(writeln!(std::io::stdout(), "{text}"));
    }

    /// Starts a step.
    pub fn step(&mut self, title: &str) {
        self.step = title.into();
        let elapsed = format!("{:5.1} s", self.elapsed().as_secs_f64());
        self.line("");
        self.line(format!(
            "{}  {}",
            self.paint("1;36", format!("== {title}")),
            self.paint("2", elapsed)
        ));
    }

    /// Says what is being done, or was found.
    pub fn say(&self, text: impl Display) {
        for line in text.to_string().lines() {
            self.line(format!("   {line}"));
        }
    }

    /// Records a statement and shows whether it holds; returns whether it does.
    pub fn check(&mut self, held: bool, what: impl Display) -> bool {
        let mark = if held { self.paint("1;32", "ok") } else { self.paint("1;31", "FAILED") };
        self.line(format!("   {mark} {what}"));
        self.checks.push(Check { step: self.step.clone(), what: what.to_string(), held });
        held
    }

    /// Records a statement that holds when there are no problems; shows the first few when there
    /// are.
    pub fn check_none(&mut self, problems: &[String], what: impl Display) -> bool {
        let held = self.check(problems.is_empty(), what);
        self.explain(problems);
        held
    }

    /// Shows the first few of many details, indented under what they explain.
    pub fn explain(&self, details: &[String]) {
        for detail in details.iter().take(DETAILS) {
            self.line(format!("          {}", self.paint("2", detail)));
        }
        if details.len() > DETAILS {
            self.line(format!("          ... and {} more", details.len() - DETAILS));
        }
    }

    /// A table; columns of numbers stand on the right.
    pub fn table(&self, head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
        let rows: Vec<_> = rows.into_iter().collect();
        let mut table = Table::new();
        table
            .load_style(presets::ASCII_BORDERS_ONLY_CONDENSED)
            .set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(head);
        for (index, column) in table.column_iter_mut().enumerate() {
            let numeric =
                |cell: &str| cell == "-" || cell.trim_end_matches(" %").parse::<f64>().is_ok();
            if rows.iter().filter_map(|row| row.get(index)).all(|cell| numeric(cell)) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.add_rows(rows);
        self.say(table);
    }

    /// Time since the show began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Everything checked so far.
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// Whether everything checked so far held.
    pub fn all_held(&self) -> bool {
        self.checks.iter().all(|check| check.held)
    }

    /// The closing line, with the statements that did not hold above it.
    pub fn verdict(&self) {
        let failed: Vec<_> = self.checks.iter().filter(|check| !check.held).collect();
        self.line("");
        for check in &failed {
            self.line(format!(
                "   {} {}: {}",
                self.paint("1;31", "FAILED"),
                check.step,
                check.what
            ));
        }
        let count = self.checks.len();
        let seconds = self.elapsed().as_secs_f64();
        let text = if failed.is_empty() {
            self.paint("1;32", format!("All {count} checks hold"))
        } else {
            self.paint("1;31", format!("{} of {count} checks failed", failed.len()))
        };
        self.line(format!("{text}, after {seconds:.1} s."));
    }
}
