"""The body that walks: one ViZDoom process with the calm copies of one WAD's maps."""

import math
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np

from relic.worlds.wad import write_calm

SCREEN = (240, 320)  # rows, columns
TICS = 2  # a frame
FRICTION, THRUST = 0.90625, 1 / 32  # share of the speed kept a tic; units a tic that one unit of a move button adds
HIDDEN = "hud minimal_hud weapon crosshair messages decals particles effects_sprites screen_flashes"
# Without view bob the eye follows the floor; the game's darkening with distance is too strong for small frames.
CONSOLE = "+sv_cheats 1 -nomonsters +movebob 0 +stillbob 0 +r_visibility 24"


def vizdoom() -> ModuleType:
    try:
        import vizdoom
    except ImportError as error:
        raise ImportError("the world doom needs ViZDoom: pip install 'relic[worlds]'") from error
    return vizdoom


def wad_file(wad: str) -> Path:
    """Freedoom's WADs come with ViZDoom."""
    return Path(str(vizdoom().__file__)).with_name(f"{wad}.wad")


def write_wrapper(folder: Path) -> Path:
    """The game's executable, which Linux ends together with us: a killed recording would else leave it running."""
    wrapper, game = folder / "doom", Path(str(vizdoom().__file__)).with_name("vizdoom")
    end_with_parent = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9)"  # PR_SET_PDEATHSIG, SIGKILL
    wrapper.write_text(
        f"#!/bin/sh\nexec '{sys.executable}' -SE -c '{end_with_parent}; os.chdir(sys.argv[1]); "
        f"os.execv(sys.argv[2], sys.argv[2:])' '{folder}' '{game}' \"$@\"\n"
    )
    wrapper.chmod(0o755)
    return wrapper


class Game:
    def __init__(self, wad: str, maps: list[str]) -> None:
        viz = vizdoom()
        self._folder = tempfile.TemporaryDirectory(prefix="relic-doom-")
        folder = Path(self._folder.name)
        write_calm(wad_file(wad), maps, folder / "calm.wad")
        game = viz.DoomGame()
        game.set_doom_game_path(str(wad_file(wad)))
        game.set_doom_scenario_path(str(folder / "calm.wad"))
        game.set_doom_config_path(str(folder / "doom.ini"))  # which it would else write into the working directory
        game.set_vizdoom_path(str(write_wrapper(folder)))
        game.set_doom_map(maps[0])
        game.set_screen_resolution(viz.ScreenResolution.RES_320X240)
        game.set_screen_format(viz.ScreenFormat.RGB24)
        game.set_depth_buffer_enabled(True)
        game.set_window_visible(False)
        for name in HIDDEN.split():
            getattr(game, f"set_render_{name}")(False)
        button, variable = viz.Button, viz.GameVariable
        game.set_available_buttons(
            [button.TURN_LEFT_RIGHT_DELTA, button.MOVE_FORWARD_BACKWARD_DELTA, button.MOVE_LEFT_RIGHT_DELTA]
        )
        game.set_available_game_variables([
            variable.CAMERA_POSITION_X, variable.CAMERA_POSITION_Y, variable.CAMERA_POSITION_Z, variable.CAMERA_ANGLE,
            variable.CAMERA_PITCH, variable.VELOCITY_X, variable.VELOCITY_Y,
        ])  # fmt: skip
        game.add_game_args(CONSOLE)
        game.set_episode_timeout(0)
        game.init()
        self._game = game

    def close(self) -> None:
        self._game.close()
        self._folder.cleanup()

    def enter(self, name: str, point: np.ndarray, angle: float) -> np.ndarray:
        """The variables in a fresh copy of a map, standing at a point [2]: the same whatever happened before."""
        self._game.set_doom_map(name)
        self._game.set_seed(1)
        self._game.new_episode()
        # Frozen, torches and potions do not flicker; the player still walks.
        for command in ("god", "freeze", f"warp {point[0]:.3f} {point[1]:.3f}"):
            self._game.send_game_command(command)
        self._step(0, 0, 0, 8)  # the eye takes some tics to rise
        self._step(self.variables()[3] - angle, 0, 0, 1)
        self._step(0, 0, 0, 1)
        return self.variables()

    def move_to(self, point: np.ndarray, angle: float) -> np.ndarray:
        """The variables one frame later, at a point [2] and an angle unless something is in the way."""
        now = self.variables()
        turn = (now[3] - angle + 180) % 360 - 180
        # Pushed by a each tic, a speed v with friction f covers v (1 + f) + a (2 + f) in two tics.
        push = (point - now[:2] - now[5:7] * (1 + FRICTION)) / (2 + FRICTION) / THRUST
        forward, right = axes(math.radians(now[3] - 0.67 * turn))  # the first tic pushes after half of the turn
        self._step(turn / TICS, push @ forward, push @ right, TICS)
        return self.variables()

    def variables(self) -> np.ndarray:
        """x y z angle pitch and the velocity's x y, of the frame on the screen; map units, degrees, units a tic."""
        return np.array(self._game.get_state().game_variables)

    def screen(self) -> tuple[np.ndarray, np.ndarray]:
        """Picture uint8 [240, 320, 3] and depth levels uint8 [240, 320]."""
        state = self._game.get_state()
        return state.screen_buffer, state.depth_buffer

    def _step(self, turn: float, forward: float, right: float, tics: int) -> None:
        self._game.set_action([float(turn), float(forward), float(right)])
        self._game.advance_action(tics)


def axes(angle: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Forward and right, [2] or [2, T], on the map of a heading in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([cos, sin]), np.array([sin, -cos])
