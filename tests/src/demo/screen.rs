//! How the demo looks: numbered steps, a line that moves while something is built, bars.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Writes to standard output; colours and moving lines only on a terminal.
#[derive(Debug)]
pub struct Screen {
    terminal: bool,
    step: usize,
    started: Instant,
    /// Width of the moving line that is on the screen.
    moving: usize,
}

const RESET: &str = "\x1b[0m";
const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const GREEN: &str = "\x1b[32m";
const CYAN: &str = "\x1b[36m";

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}

impl Screen {
    /// For this process's standard output.
    pub fn new() -> Self {
        let terminal = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { terminal, step: 0, started: Instant::now(), moving: 0 }
    }

    fn paint(&self, style: &str, text: &str) -> String {
        if self.terminal { format!("{style}{text}{RESET}") } else { text.to_owned() }
    }

    fn print(&mut self, line: &str) {
        self.clear();
        // A reader that closed the pipe has seen enough; the checks go on.
        let _ = writeln!(std::io::stdout(), "{line}");
    }

    fn clear(&mut self) {
        if self.moving > 0 {
            let _ = write!(std::io::stdout(), "\r{:1$}\r", "", self.moving);
            self.moving = 0;
        }
    }

    /// Begins a step.
    pub fn step(&mut self, title: &str) {
        self.step += 1;
        let number = self.paint(CYAN, &format!("{:>2}", self.step));
        let title = self.paint(BOLD, title);
        self.print(&format!("\n{number}  {title}"));
    }

    /// Something that holds, as it was checked.
    pub fn ok(&mut self, text: &str) {
        let mark = self.paint(GREEN, "✓");
        self.print(&format!("    {mark} {text}"));
    }

    /// A line of explanation.
    pub fn note(&mut self, text: &str) {
        let text = self.paint(DIM, text);
        self.print(&format!("    {text}"));
    }

    /// Text as it is, indented.
    pub fn plain(&mut self, text: &str) {
        for line in text.lines() {
            self.print(&format!("      {line}"));
        }
    }

    /// What a person typed, as it were.
    pub fn command(&mut self, text: &str) {
        let text = self.paint(CYAN, &format!("$ {text}"));
        self.print(&format!("    {text}"));
    }

    /// A line that the next one replaces; nothing where the output is not a terminal.
    pub fn progress(&mut self, text: &str) {
        if !self.terminal {
            return;
        }
        let seconds = self.started.elapsed().as_secs();
        let line = format!("    … {text} ({seconds}s)");
        self.clear();
        let _ = write!(std::io::stdout(), "{DIM}{line}{RESET}");
        let _ = std::io::stdout().flush();
        self.moving = line.chars().count();
    }

    /// Names with numbers as bars.
    pub fn bars<'a>(&mut self, rows: impl IntoIterator<Item = (&'a str, u64, String)>) {
        let rows: Vec<_> = rows.into_iter().collect();
        let most = rows.iter().map(|(_, value, _)| *value).max().unwrap_or(0).max(1);
        let width = rows.iter().map(|(name, _, _)| name.chars().count()).max().unwrap_or(0);
        for (name, value, note) in rows {
            const FULL: u64 = 30;
            let bar = "█".repeat(usize::try_from((value * FULL).div_ceil(most)).unwrap_or(0));
            let bar = self.paint(GREEN, &format!("{bar:<30}"));
            self.print(&format!("      {name:<width$}  {bar} {value:>6}  {note}"));
        }
    }

    /// How long it has been going on.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}
