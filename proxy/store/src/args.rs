//! Flags of binaries that read a source, so that all of them have the same.

use std::fs;
use std::io;
use std::path::PathBuf;

use clap::Args;
use sluice_model::ResourceKind;

use crate::{EtcdOptions, SourceOptions, SourceUrl};

/// Access to etcd.
#[derive(Clone, Debug, Default, Args)]
pub struct EtcdArgs {
    /// What all keys in etcd begin with, as kube-apiserver's --etcd-prefix.
    #[arg(long, default_value = "/registry", value_name = "PREFIX")]
    pub etcd_prefix: String,

    /// PEM file of the authority that signed etcd's certificate.
    #[arg(long, value_name = "FILE")]
    pub etcd_cacert: Option<PathBuf>,

    /// PEM file of the client certificate for etcd.
    #[arg(long, value_name = "FILE")]
    pub etcd_cert: Option<PathBuf>,

    /// PEM file of the client's private key for etcd.
    #[arg(long, value_name = "FILE")]
    pub etcd_key: Option<PathBuf>,

    /// User name, if etcd wants one.
    #[arg(long, value_name = "NAME", requires = "etcd_password_file")]
    pub etcd_user: Option<String>,

    /// File that holds the user's password and nothing else.
    #[arg(long, value_name = "FILE", requires = "etcd_user")]
    pub etcd_password_file: Option<PathBuf>,
}

/// The file with the password could not be read.
#[derive(Debug, thiserror::Error)]
#[error("--etcd-password-file {}: {source}", path.display())]
pub struct PasswordError {
    /// The file.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

impl EtcdArgs {
    /// Options of a source that is asked for these kinds.
    ///
    /// # Errors
    ///
    /// The password's file cannot be read.
    pub fn options(
        &self,
        kinds: impl IntoIterator<Item = ResourceKind>,
    ) -> Result<SourceOptions, PasswordError> {
        let read = |path: &PathBuf| {
            fs::read_to_string(path)
                .map(|text| text.trim_end().to_owned())
                .map_err(|source| PasswordError { path: path.clone(), source })
        };
        Ok(SourceOptions {
            etcd: EtcdOptions {
                prefix: self.etcd_prefix.clone(),
                ca: self.etcd_cacert.clone(),
                cert: self.etcd_cert.clone(),
                key: self.etcd_key.clone(),
                user: self.etcd_user.clone(),
                password: self.etcd_password_file.as_ref().map(read).transpose()?,
            },
            kinds: kinds.into_iter().collect(),
            in_place: false,
        })
    }
}

/// Parses a flag's value into a source; the message says which kinds there are.
///
/// # Errors
///
/// It names no source.
pub fn parse_source(text: &str) -> Result<SourceUrl, String> {
    text.parse::<SourceUrl>().map_err(|error| format!("{error}: {}", error.hint()))
}
