//! Container runtimes that are not ours, on a node of a test, with everything of theirs in a directory of the test's.
//!
//! A runtime runs in a mount namespace of its own: what it mounts goes with its last process, and the paths that are
//! built into it (`/etc/cni`, `/opt/cni`, `/var/lib/cni`, `/run/containerd`, `/run/runc`, `/run/netns`) are the test's
//! there and untouched elsewhere: what a killed run leaves is in its directory, which the next run sweeps.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::PATIENCE;
use crate::bins::bin;
use crate::cgroup;
use crate::cri::Cri;
use crate::netns::run;
use crate::node::Node;
use crate::process::{Launch, Process};
use crate::wait::wait_ok;

/// The one image: busybox with a web server on port 8080 as its command. It serves as a pause image, too.
pub const IMAGE: &str = "docker.io/sluice/busybox:test";
/// The port that the image's command serves [`PAGE`] on.
pub const PORT: u16 = 8080;
/// What it serves.
pub const PAGE: &str = "hello from a container";

/// Where distributions put the reference plugins.
pub const PLUGINS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// The directories of a runtime: its state, the plugin and its configuration, and the image.
#[derive(Debug)]
pub struct Home {
    dir: PathBuf,
    cgroup: String,
}

impl Home {
    /// Makes them below `dir`, with the network configuration of `node`, whose agent must have been started.
    ///
    /// # Errors
    /// A file cannot be written, or busybox is missing.
    pub fn new(node: &Node, dir: &Path) -> Result<Self> {
        let dir = dir.join("runtime");
        for sub in ["bin", "net.d", "etc", "work", "image"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        symlink(bin("sluice-cni")?, dir.join("bin/sluice-cni"))?;
        // containerd sets up a pod's loopback by it.
        let mut plugins = PLUGINS.iter().map(|dir| Path::new(dir).join("loopback"));
        let loopback = plugins.find(|path| path.is_file());
        let missing = "no plugin loopback: apt-get install containernetworking-plugins";
        symlink(loopback.context(missing)?, dir.join("bin/loopback"))?;
        let mut plugin = node.cni_config();
        let object = plugin.as_object_mut().context("an object")?;
        object.remove("cniVersion");
        object.remove("name");
        plugin["capabilities"] = json!({"portMappings": true});
        // 1.6 of containerd refuses results of 1.1.0.
        let list = json!({"cniVersion": "1.0.0", "name": "sluice", "plugins": [plugin]});
        fs::write(dir.join("net.d/10-sluice.conflist"), list.to_string())?;
        // Below the node's own, so that its hooks see the containers and its end is theirs.
        let name = node.cgroup().path().file_name().context("a cgroup has a name")?;
        let cgroup = format!("/{}/runtime", name.to_string_lossy());
        let this = Self { dir, cgroup };
        this.build_image()?;
        Ok(this)
    }

    /// Where everything is.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The cgroup that containers are to be in, as runtimes spell it.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// The image as a tar archive in Docker's format, which every runtime reads.
    pub fn image(&self) -> PathBuf {
        self.dir.join("image.tar")
    }

    fn build_image(&self) -> Result<()> {
        let image = self.dir.join("image");
        let layer = image.join("layer");
        for sub in ["bin", "www", "etc", "tmp", "proc", "sys", "dev"] {
            fs::create_dir_all(layer.join(sub))?;
        }
        let busybox =
            ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| Path::new(path).exists());
        let busybox = busybox.context("no busybox: apt-get install busybox-static")?;
        fs::copy(busybox, layer.join("bin/busybox"))?;
        for name in ["sh", "sleep", "ip", "wget", "httpd"] {
            symlink("busybox", layer.join("bin").join(name))?;
        }
        fs::write(layer.join("www/index.html"), PAGE)?;
        let tar = |output: &Path, dir: &Path, members: &[&str]| {
            let (output, dir) = (output.display().to_string(), dir.display().to_string());
            let options = ["--owner=0", "--group=0", "-cf", &output, "-C", &dir];
            run("tar", &[&options[..], members].concat())
        };
        let layer_tar = image.join("layer.tar");
        tar(&layer_tar, &layer, &["."])?;
        let sum = run("sha256sum", &[&layer_tar.display().to_string()])?;
        let sum = sum.split_whitespace().next().context("a sum")?;
        let machine = run("uname", &["-m"])?;
        let architecture = if machine.trim() == "aarch64" { "arm64" } else { "amd64" };
        let command = ["httpd", "-f", "-p", &PORT.to_string(), "-h", "/www"];
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": command},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
        });
        let manifest =
            json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
        fs::write(image.join("config.json"), config.to_string())?;
        fs::write(image.join("manifest.json"), manifest.to_string())?;
        tar(&self.image(), &image, &["manifest.json", "config.json", "layer.tar"])?;
        Ok(())
    }

    /// A command of a runtime on the node, in a mount namespace of its own.
    fn launch(&self, node: &Node, program: &str) -> Launch {
        let dir = self.dir.display();
        let script = format!(
            "set -e; for name in containerd runc netns; do \
               mkdir -p /run/$name {dir}/run/$name; mount --bind {dir}/run/$name /run/$name; done; \
             mount -t tmpfs none /var/lib; mount -t tmpfs none /opt; \
             mkdir -p /opt/cni {dir}/work/$$; ln -s {dir}/bin /opt/cni/bin; \
             mount -t tmpfs none {dir}/work/$$; mkdir {dir}/work/$$/up {dir}/work/$$/work; \
             mount -t overlay overlay \
               -o lowerdir=/etc,upperdir={dir}/work/$$/up,workdir={dir}/work/$$/work /etc; \
             rm -rf /etc/cni; mkdir /etc/cni; ln -s {dir}/net.d /etc/cni/net.d; exec \"$@\""
        );
        let options = ["--mount", "--propagation", "private", "sh", "-c", &script, "sh", program];
        node.launch("unshare").args(options)
    }
}

impl Drop for Home {
    /// Hierarchies of cgroup v1 have no owner here; those of the node's cgroup go with the node.
    fn drop(&mut self) {
        let Some(top) = self.cgroup.trim_start_matches('/').split('/').next() else { return };
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let path = hierarchy.path().join(top);
            if path.is_dir() && !path.join("cgroup.controllers").exists() {
                cgroup::remove_empty(&path);
            }
        }
    }
}

/// containerd with its CRI plugin.
#[derive(Debug)]
pub struct Containerd {
    process: Process,
    socket: PathBuf,
}

impl Containerd {
    /// Starts it on the node and imports the image.
    ///
    /// # Errors
    /// It is not installed, or does not come up; the message holds its log.
    pub fn start(node: &Node, home: &Home) -> Result<Self> {
        let dir = home.path().display();
        let socket = home.path().join("containerd.sock");
        let config = format!(
            r#"version = 2
root = "{dir}/containerd-root"
state = "{dir}/containerd-state"
[grpc]
  address = "{}"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  sandbox_image = "{IMAGE}"
  netns_mounts_under_state_dir = true
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{dir}/bin"
    conf_dir = "{dir}/net.d"
"#,
            socket.display()
        );
        let path = home.path().join("containerd.toml");
        fs::write(&path, config)?;
        let launch = home.launch(node, "containerd").arg("--config").arg(&path);
        let mut process = node.spawn("containerd", &launch)?;
        process.wait_for_log("containerd successfully booted", PATIENCE)?;
        let this = Self { process, socket };
        for namespace in ["default", "k8s.io"] {
            this.ctr(node, home)
                .args(["-n", namespace, "images", "import", "--snapshotter", "native"])
                .arg(home.image())
                .run()?;
        }
        Ok(this)
    }

    /// `ctr` with its address; in its own mount namespace it finds the plugin at the paths that are built into it.
    pub fn ctr(&self, node: &Node, home: &Home) -> Launch {
        home.launch(node, "ctr").arg("--address").arg(&self.socket)
    }

    /// Its CRI, once it has read the network configuration.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn cri(&self) -> Result<Cri> {
        let cri = Cri::connect(&self.socket)?;
        wait_ok("the network of containerd", PATIENCE, || cri.network_ready())?;
        Ok(cri)
    }

    /// Its file system, seen from outside of its mount namespace.
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.process.pid()))
    }

    /// What it printed.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// podman with its CNI backend: no daemon.
#[derive(Debug)]
pub struct Podman<'a> {
    node: &'a Node,
    home: &'a Home,
}

impl<'a> Podman<'a> {
    /// Writes its configuration and loads the image.
    ///
    /// # Errors
    /// It is not installed, or has no CNI backend.
    pub fn new(node: &'a Node, home: &'a Home) -> Result<Self> {
        let dir = home.path().display();
        let config = format!(
            r#"[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[network]
network_backend = "cni"
cni_plugin_dirs = ["{dir}/bin"]
network_config_dir = "{dir}/net.d"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
volume_path = "{dir}/podman/volumes"
static_dir = "{dir}/podman/static"
tmp_dir = "{dir}/podman/tmp"
"#
        );
        fs::write(home.path().join("containers.conf"), config)?;
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{dir}/podman/root\"\nrunroot = \"{dir}/podman/run\"\n"
        );
        fs::write(home.path().join("storage.conf"), storage)?;
        let policy = json!({"default": [{"type": "insecureAcceptAnything"}]});
        fs::write(home.path().join("policy.json"), policy.to_string())?;
        let this = Self { node, home };
        this.launch()
            .args(["load", "--signature-policy"])
            .arg(home.path().join("policy.json"))
            .arg("--input")
            .arg(home.image())
            .run()?;
        Ok(this)
    }

    /// `podman`, with everything of its own below the home directory.
    pub fn launch(&self) -> Launch {
        self.program("podman")
    }

    /// A script of a shell that calls podman several times: what podman mounts lives as long as the script.
    pub fn in_one(&self, script: &str) -> Launch {
        self.program("sh").args(["-c", script])
    }

    fn program(&self, program: &str) -> Launch {
        let home = self.home;
        home.launch(self.node, program)
            .env("CONTAINERS_CONF", home.path().join("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", home.path().join("storage.conf"))
    }
}
