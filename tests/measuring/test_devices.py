"""What a device holds, and how many input sets miss its caches."""

from fastlora.measuring.devices import number_of_sets, private_cache_bytes


def test_input_sets_fill_the_cache_four_times_within_bounds():
    assert number_of_sets(100, 1000) == 16
    assert number_of_sets(1000, 1000) == 4
    assert number_of_sets(10_000, 1000) == 2


def test_the_caches_of_all_cores_add_up_once_each(tmp_path):
    def cache(cpu, index, level, size, shared):
        folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        facts = {"level": level, "size": size, "shared_cpu_list": shared, "type": "Unified"}
        for name, text in facts.items():
            (folder / name).write_text(f"{text}\n")

    for cpu, shared in ((0, "0-1"), (1, "0-1"), (2, "2")):
        cache(cpu, 0, 1, "48K", str(cpu))
        cache(cpu, 2, 2, "2M", shared)
        cache(cpu, 3, 3, "300M", "0-2")
    assert private_cache_bytes(tmp_path) == 2 * 2**21
    assert private_cache_bytes(tmp_path / "none") == 0
