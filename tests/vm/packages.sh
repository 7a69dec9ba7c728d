# shellcheck shell=bash
# The parts of a virtual machine, from Debian's archive: a kernel, and busybox for its
# first steps. Unpacked into a directory and never installed: this machine's boot loader,
# its initramfs and a busybox of its own are left alone. Sourced, after
# topology/requirements.sh. Parts that were unpacked before are taken as they are, without network.

# fetch_kernel VERSION DIRECTORY: the newest generic Linux VERSION. DIRECTORY then holds
# vmlinuz, lib/modules and release, the kernel's name for itself.
fetch_kernel() {
	local version="$1" directory="$2" package release
	[ ! -e "$directory/release" ] || return 0
	package="$(kernel_package "$version")"
	if [ -z "$package" ]; then
		# The package lists may be absent, or older than the mirror.
		apt_quietly update >/dev/null
		package="$(kernel_package "$version")"
	fi
	if [ -z "$package" ]; then
		echo "no package of Linux $version is known to apt; Debian 12 has it: apt-cache pkgnames linux-image-$version" >&2
		return 1
	fi
	# All that is virtual and of the network; no graphics, sound and the like.
	unpack "$package" "$directory" './boot/vmlinuz-*' './lib/modules/*/modules.*' \
		'./lib/modules/*/kernel/'{arch,crypto,fs,lib,net} \
		'./lib/modules/*/kernel/drivers/'{net,virtio} || return
	release="$(basename "$directory"/lib/modules/*)"
	as_cargo_user depmod -b "$directory" "$release" &&
		as_cargo_user mv "$directory/boot/vmlinuz-$release" "$directory/vmlinuz" &&
		as_cargo_user rmdir "$directory/boot" &&
		as_cargo_user tee "$directory/release" <<<"$release" >/dev/null
}

# kernel_package VERSION: the name of the newest. Cloud kernels lack 9p.
kernel_package() {
	apt-cache pkgnames "linux-image-$1." |
		grep -xE "linux-image-${1//./\\.}\.[0-9][0-9a-z.+]*(-[0-9]+)?-$(dpkg --print-architecture)" |
		sort -V | tail -n 1 || true
}

# fetch_busybox DIRECTORY: DIRECTORY then holds bin/busybox, which needs no library.
fetch_busybox() {
	[ -x "$1/bin/busybox" ] || unpack busybox-static "$1" ./bin/busybox
}

# unpack PACKAGE DIRECTORY PATH...: these paths of it, patterns, anew.
unpack() {
	local package="$1" directory="$2"
	shift 2
	echo "Fetching $package, this once"
	as_cargo_user rm -rf "$directory"
	as_cargo_user mkdir -p "$directory"
	if ! download "$package" "$directory" 2>/dev/null && ! { apt_quietly update >/dev/null && download "$package" "$directory"; }; then
		echo "$package could not be fetched: apt-get download $package" >&2
		return 1
	fi
	dpkg-deb --fsys-tarfile "$directory"/*.deb | as_cargo_user tar -x -C "$directory" --wildcards "$@" &&
		as_cargo_user rm "$directory"/*.deb
}

download() {
	# Not as apt's own user, who may not write here.
	# shellcheck disable=SC2016 # expanded by the inner shell
	as_cargo_user sh -c 'cd "$2" && apt-get -qq -o APT::Sandbox::User=root download "$1"' sh "$1" "$2" </dev/null
}
