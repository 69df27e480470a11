//! The agent's settings: its command line, and the file that kube-proxy has them in.
//!
//! A DaemonSet that ran kube-proxy can run `sluiced` with the arguments and the ConfigMap that it has:
//!
//! - A `KubeProxyConfiguration` (`kubeproxy.config.k8s.io/v1alpha1`, `--config`) says what flags would
//!   say, field by field. **A flag on the command line wins over the file** (kube-proxy ignores most
//!   flags where there is a file, so that a flag that someone adds does nothing; here it does what it
//!   says).
//! - What has no meaning here, flag or field, is named in one warning and otherwise left alone. Fields
//!   that say nothing (null, empty, zero), as the tools that write such files leave them, are no
//!   reason to warn.
//! - What is in no version of kube-proxy is an error: a word that was mistyped must not be passed over.

mod duration;
mod file;
mod foreign;

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, CommandFactory as _, FromArgMatches as _};

use crate::cli::SluicedArgs;

pub use duration::{DurationError, seconds};
pub use file::{ConfigError, Setting, Settings};

/// What the command line and the file say together.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The flags.
    pub args: SluicedArgs,
    /// What was left out, one line each.
    pub warnings: Vec<String>,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// The command line is wrong, or asks for help.
    #[error(transparent)]
    Flags(#[from] clap::Error),
    /// The file cannot be read.
    #[error("--config {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is wrong.
    #[error("--config {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The field and what is wrong with it.
        source: ConfigError,
    },
}

/// Reads a command line, program name first, and the file that it names.
///
/// # Errors
///
/// See [`ArgsError`].
pub fn sluiced_args(argv: impl IntoIterator<Item = OsString>) -> Result<Parsed, ArgsError> {
    let command = SluicedArgs::command();
    let own = |name: &str| command.get_arguments().any(|arg| arg.get_long() == Some(name));
    let (mut argv, mut warnings) = foreign::split(argv, own);
    let matches = command.clone().try_get_matches_from(&argv)?;
    let mut args = SluicedArgs::from_arg_matches(&matches)?;
    if let Some(path) = args.config.clone() {
        let text = fs::read_to_string(&path)
            .map_err(|source| ArgsError::Read { path: path.clone(), source })?;
        let wrong = |source| ArgsError::File { path: path.clone(), source };
        let Settings { settings, unused } = Settings::parse(&text).map_err(wrong)?;
        let at = |field: &str| format!("--config {}: {field}", path.display());
        warnings.extend(unused.iter().map(|unused| format!("{} {}", at(unused.field), unused.why)));
        let mut taken: Vec<&str> = Vec::new();
        for Setting { field, flag, value } in &settings {
            let Some(arg) = command.get_arguments().find(|arg| arg.get_long() == Some(*flag))
            else {
                warnings.push(format!("{} has no meaning for Sluice", at(field)));
                continue;
            };
            let on_line = matches.value_source(arg.get_id().as_str());
            if on_line == Some(ValueSource::CommandLine) || taken.contains(flag) {
                continue;
            }
            taken.push(flag);
            let Some(word) = as_word(arg, flag, value) else { continue };
            command
                .clone()
                .try_get_matches_from([argv[0].clone(), word.clone()])
                .map_err(|error| wrong(ConfigError::value(field, value, &error)))?;
            argv.insert(1, word);
        }
        args = SluicedArgs::from_arg_matches(&command.try_get_matches_from(&argv)?)?;
    }
    Ok(Parsed { args, warnings })
}

/// `--flag=value`, or `--flag` for one that takes no value and is to be set.
fn as_word(arg: &Arg, flag: &str, value: &str) -> Option<OsString> {
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return (value == "true").then(|| format!("--{flag}").into());
    }
    Some(format!("--{flag}={value}").into())
}

#[cfg(test)]
mod tests;
