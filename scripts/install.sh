# Sourced by the other scripts: what is missing is installed.

step() { printf '\n== %s\n' "$*"; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else return 1; fi
}

# install PROGRAM PACKAGE: by apt where the program is missing.
install() {
    command -v "$1" >/dev/null && return 0
    step "installing $2"
    if ! command -v apt-get >/dev/null || ! as_root env DEBIAN_FRONTEND=noninteractive sh -c \
        "apt-get update -qq && apt-get install -y -qq --no-install-recommends $2" >/dev/null; then
        echo "$1 is needed and could not be installed. Install it, for example with:" >&2
        echo "    sudo apt-get install $2" >&2
        return 1
    fi
    # Debian starts services at once where there is an init system; the tests bring their own.
    if command -v systemctl >/dev/null; then as_root systemctl stop "$2" >/dev/null 2>&1 || true; fi
}

# Chromium, or a Chrome that is there already, and the driver of the same version.
install_browser() {
    { command -v google-chrome >/dev/null || install chromium chromium; } &&
        install chromedriver chromium-driver
}
