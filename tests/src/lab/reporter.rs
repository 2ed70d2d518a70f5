//! The lab's output: headings, tables, and one line for each statement that was checked.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// Details printed below a line.
const MAX_DETAILS: usize = 5;

/// A statement about the lab, and whether it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// In the present tense.
    pub text: String,
    /// Whether it holds.
    pub holds: bool,
}

impl Statement {
    /// A statement in free words.
    pub fn new(holds: bool, text: impl Display) -> Self {
        Self { text: text.to_string(), holds }
    }

    /// A measured value with the expectation in words.
    pub fn measured(
        holds: bool,
        name: impl Display,
        measured: impl Display,
        expected: impl Display,
    ) -> Self {
        Self::new(holds, format!("{name}: {measured} (expected: {expected})"))
    }

    /// A measured value that must equal the expected one.
    pub fn equal<T: PartialEq + Display>(name: impl Display, measured: T, expected: T) -> Self {
        Self::measured(measured == expected, name, measured, expected)
    }
}

/// A statement of one scenario.
#[derive(Clone, Debug)]
pub struct CheckResult {
    /// Title of the scenario.
    pub scenario: String,
    /// The statement and whether it holds.
    pub statement: Statement,
}

/// Prints the lab's progress and stores every checked statement.
#[derive(Debug)]
pub struct Reporter {
    color: bool,
    /// Whether groups of statements are printed line by line.
    verbose: bool,
    /// Receives the output instead of standard output.
    transcript: Option<Mutex<String>>,
    scenario: String,
    started: Instant,
    results: Vec<CheckResult>,
    /// Whether a group was printed as its summary only.
    summarized: bool,
}

impl Default for Reporter {
    fn default() -> Self {
        Self::new()
    }
}

impl Reporter {
    /// Prints to standard output: in colours on a terminal unless `NO_COLOR` is set (no-color.org),
    /// every statement of a group if `LAB_VERBOSE` is set to something other than `0`.
    pub fn new() -> Self {
        let is_set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            color: std::io::stdout().is_terminal() && is_set("NO_COLOR").is_none(),
            verbose: is_set("LAB_VERBOSE").is_some_and(|value| value != "0"),
            transcript: None,
            scenario: String::new(),
            started: Instant::now(),
            results: Vec::new(),
            summarized: false,
        }
    }

    /// Prints nothing, but keeps a [`transcript`](Self::transcript) with every statement.
    pub fn silent() -> Self {
        Self { color: false, verbose: true, transcript: Some(Mutex::default()), ..Self::new() }
    }

    /// The output of a silent reporter.
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
        // A closed pipe (`sluice-lab run | head`) must not end the lab before its clean-up.
        drop(writeln!(std::io::stdout(), "{text}"));
    }

    /// Prints the heading of a scenario.
    pub fn heading(&mut self, title: &str) {
        self.scenario = title.into();
        let elapsed = format!("{:5.1} s", self.elapsed().as_secs_f64());
        self.line("");
        self.line(format!(
            "{}  {}",
            self.paint("1;36", format!("== {title}")),
            self.paint("2", elapsed)
        ));
    }

    /// Prints an action or an observation.
    pub fn info(&self, text: impl Display) {
        for line in text.to_string().lines() {
            self.line(format!("   {line}"));
        }
    }

    /// Prints and stores a statement; returns whether it holds.
    pub fn check(&mut self, statement: Statement) -> bool {
        self.print(&statement);
        self.store(statement)
    }

    /// Prints and stores several statements of one kind.
    ///
    /// If all hold, only `summary` with their number is printed, unless the reporter is verbose. A
    /// statement that does not hold is always printed.
    pub fn check_group(
        &mut self,
        summary: impl Display,
        statements: impl IntoIterator<Item = Statement>,
    ) -> bool {
        let statements: Vec<_> = statements.into_iter().collect();
        let all_hold = !statements.is_empty() && statements.iter().all(|statement| statement.holds);
        if statements.is_empty() {
            return self.check(Statement::new(false, format!("{summary}: nothing was checked")));
        }
        if all_hold && !self.verbose {
            self.summarized = true;
            let plural = if statements.len() == 1 { "check" } else { "checks" };
            self.print(&Statement::new(true, format!("{summary} ({} {plural})", statements.len())));
        } else {
            let printed = |statement: &&Statement| self.verbose || !statement.holds;
            statements.iter().filter(printed).for_each(|statement| self.print(statement));
        }
        for statement in statements {
            self.store(statement);
        }
        all_hold
    }

    /// Checks that there are no problems; prints the first few otherwise.
    pub fn check_none(&mut self, problems: &[String], text: impl Display) -> bool {
        let holds = self.check(Statement::new(problems.is_empty(), text));
        self.details(problems);
        holds
    }

    fn print(&self, statement: &Statement) {
        let Statement { text, holds } = statement;
        let mark = if *holds { self.paint("1;32", "ok") } else { self.paint("1;31", "FAILED") };
        self.line(format!("   {mark} {text}"));
    }

    fn store(&mut self, statement: Statement) -> bool {
        let holds = statement.holds;
        self.results.push(CheckResult { scenario: self.scenario.clone(), statement });
        holds
    }

    /// Prints the first few of many details, indented below the line that they explain.
    pub fn details(&self, details: &[String]) {
        for detail in details.iter().take(MAX_DETAILS) {
            self.line(format!("          {}", self.paint("2", detail)));
        }
        if details.len() > MAX_DETAILS {
            self.line(format!("          ... and {} more", details.len() - MAX_DETAILS));
        }
    }

    /// Prints a table; columns of numbers are right-aligned.
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
        self.info(table);
    }

    /// Time since the reporter was created.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Every statement checked so far.
    pub fn results(&self) -> &[CheckResult] {
        &self.results
    }

    /// Whether every statement checked so far holds.
    pub fn all_hold(&self) -> bool {
        self.results.iter().all(|result| result.statement.holds)
    }

    /// Prints the statements that do not hold, and the closing line.
    pub fn summary(&self) {
        let failed: Vec<_> = self.results.iter().filter(|result| !result.statement.holds).collect();
        self.line("");
        for CheckResult { scenario, statement } in &failed {
            let mark = self.paint("1;31", "FAILED");
            self.line(format!("   {mark} {scenario}: {}", statement.text));
        }
        let count = self.results.len();
        let seconds = self.elapsed().as_secs_f64();
        let text = if failed.is_empty() {
            self.paint("1;32", format!("All {count} checks passed"))
        } else {
            self.paint("1;31", format!("{} of {count} checks failed", failed.len()))
        };
        self.line(format!("{text}, after {seconds:.1} s."));
        if self.summarized {
            self.line("LAB_VERBOSE=1 prints every check.");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_prints_one_line_and_every_failed_statement() {
        let mut reporter = Reporter { verbose: false, ..Reporter::silent() };
        let equal = |measured| Statement::equal("packets", measured, 2);
        assert!(reporter.check_group("all packets arrive", [equal(2), equal(2)]));
        assert!(!reporter.check_group("all packets arrive", [equal(2), equal(1)]));
        assert_eq!(
            reporter.transcript(),
            "   ok all packets arrive (2 checks)\n   FAILED packets: 1 (expected: 2)\n"
        );
        assert_eq!(reporter.results().len(), 4);
        assert!(!reporter.check_group("nothing", []) && !reporter.all_hold());
    }

    #[test]
    fn a_verbose_reporter_prints_every_statement_of_a_group() {
        let mut reporter = Reporter::silent();
        reporter.check_group("summary", [Statement::equal("packets", 2, 2)]);
        assert_eq!(reporter.transcript(), "   ok packets: 2 (expected: 2)\n");
    }
}
