//! `--cleanup`: takes back everything that an agent ever did to this node.

use std::fs;
use std::io;

use super::lock::NodeLock;
use super::{StartError, settings};
use crate::cli::SluicedArgs;
use crate::dataplane;
use crate::routes::{RouteManager, ServiceRoutes};

/// Removes programs, maps, routes and files of all versions of Sluice on this node, and nothing else;
/// then services are reached no more, unless somebody else serves them. What `sluice-cni` made stays:
/// pods keep their interfaces and addresses.
///
/// # Errors
///
/// Where an agent runs, or something cannot be removed; what was removed before stays removed, and
/// doing it again goes on.
pub async fn cleanup(args: &SluicedArgs) -> Result<(), StartError> {
    settings::require_root()?;
    let run_dir = &args.paths.run_dir;
    let existed = run_dir.exists();
    let lock = NodeLock::take(run_dir).map_err(|error| {
        StartError::new(error.to_string(), "stop it first, and keep it from being started again")
    })?;
    let removed = dataplane::cleanup(&args.paths.bpf_root)
        .map_err(|error| StartError::new(error.to_string(), ""))?;
    tracing::info!(
        programs = removed.links + removed.filters,
        maps = removed.maps,
        "detached and unpinned"
    );
    let routes = remove_routes().await?;
    tracing::info!(routes, "removed");
    for path in [args.paths.socket(), args.paths.node_file()] {
        remove_file(&path)?;
    }
    let leaving = args.paths.leaving();
    match fs::remove_dir_all(&leaving) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let message = format!("cannot remove {}: {error}", leaving.display());
            return Err(StartError::new(message, ""));
        }
        _ => {}
    }
    remove_file(&run_dir.join("sluiced.lock"))?;
    drop(lock);
    match fs::remove_dir(run_dir) {
        Err(error)
            if existed
                && !matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty
                        | io::ErrorKind::ResourceBusy
                        | io::ErrorKind::NotFound
                ) =>
        {
            Err(StartError::new(format!("cannot remove {}: {error}", run_dir.display()), ""))
        }
        _ => Ok(()),
    }
}

/// How many there were.
async fn remove_routes() -> Result<usize, StartError> {
    let error = |error: crate::routes::RouteError| StartError::new(error.to_string(), "");
    let hosts = RouteManager::open().map_err(error)?.reconcile(&[]).await.map_err(error)?;
    let ranges = ServiceRoutes::open().map_err(error)?.reconcile([]).await.map_err(error)?;
    if let Some(failed) = hosts.failed.first().or(ranges.failed.first()) {
        return Err(StartError::new(failed.to_string(), ""));
    }
    Ok(hosts.deleted.len() + ranges.deleted.len())
}

fn remove_file(path: &std::path::Path) -> Result<(), StartError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StartError::new(format!("cannot remove {}: {error}", path.display()), ""))
        }
        _ => Ok(()),
    }
}
