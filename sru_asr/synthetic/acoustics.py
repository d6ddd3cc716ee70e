"""The room around a voice: silence, echoes, noise, microphone and level, generated with NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 16000
"""Samples per second of the corpus."""

_PEAK = 0.95


@dataclass(frozen=True)
class Scene:
    """Everything that happens to a voice between mouth and file.

    Attributes
    ----------
    silence : (float, float)
        Seconds before and after the speech.
    rt60 : float
        Seconds in which the reverberation falls by 60 dB; 0 is a dry recording.
    direct : float
        Level of the direct sound over the reverberation, dB.
    snr : float
        Level of the speech over the noise, dB.
    colour : float
        The noise's power falls with frequency ** colour: 0 is white, 1 pink, 2 brown.
    level : float
        RMS of the speech, dB below full scale.
    microphone : tuple of float
        Gain in dB at frequencies evenly spaced on the mel scale, from 0 to half of `SAMPLE_RATE`,
        and linear between them; empty for a flat response.
    """

    silence: tuple[float, float]
    rt60: float
    direct: float
    snr: float
    colour: float
    level: float
    microphone: tuple[float, ...] = ()


def render(voice: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Put a voice into a scene.

    Parameters
    ----------
    voice : numpy.ndarray
        Dry speech at `SAMPLE_RATE`, any scale.
    scene : Scene
        What to add.
    rng : numpy.random.Generator
        Draws the noise and the echoes.

    Returns
    -------
    numpy.ndarray
        16-bit samples: as many as the voice has and as the silences last. They never clip.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> scene = Scene(silence=(0.5, 0.5), rt60=0.3, direct=6, snr=20, colour=1, level=-26)
    >>> render(rng.standard_normal(16000), scene, rng).shape
    (32000,)
    """
    before, after = (round(seconds * SAMPLE_RATE) for seconds in scene.silence)
    x = np.pad(voice.astype(np.float64), (before, after))
    if scene.rt60:
        x = _reverberate(x, scene.rt60, scene.direct, rng)
    x /= _rms(x[before : before + len(voice)])
    x += 10 ** (-scene.snr / 20) * _noise(len(x), scene.colour, rng)
    if scene.microphone:
        x = _record(x, scene.microphone)
        x /= _rms(x[before : before + len(voice)])
    gain = min(10 ** (scene.level / 20), _PEAK / np.abs(x).max())
    recording: np.ndarray = np.rint(32767 * gain * x).astype(np.int16)
    return recording


def resample(x: np.ndarray, rate: int) -> np.ndarray:
    """Change the sampling rate to `SAMPLE_RATE`, through the spectrum and without delay.

    Parameters
    ----------
    x : numpy.ndarray
        Samples that begin and end in silence: the spectrum takes them as one period.
    rate : int
        Their samples per second, above `SAMPLE_RATE`.

    Examples
    --------
    >>> resample(np.zeros(22050), 22050).shape
    (16000,)
    """
    divisor = int(np.gcd(rate, SAMPLE_RATE))
    periods = -(-len(x) // (rate // divisor))
    length = periods * (SAMPLE_RATE // divisor)
    spectrum = np.fft.rfft(x, periods * (rate // divisor))[: length // 2 + 1]
    spectrum[-1] = 0  # what is left at half the new rate has no counterpart
    return np.fft.irfft(spectrum, length) * (SAMPLE_RATE / rate)


def trim(x: np.ndarray, threshold: float = 1e-3) -> tuple[int, int]:
    """Where the sound begins and ends: first and last + 1 sample above threshold times the peak.

    Examples
    --------
    >>> trim(np.array([0.0, 0.0, 1.0, -0.5, 0.0]))
    (2, 4)
    """
    loud = np.flatnonzero(np.abs(x.astype(np.float64)) > threshold * np.abs(x).max(initial=0))
    return (int(loud[0]), int(loud[-1]) + 1) if len(loud) else (0, 0)


def _reverberate(x: np.ndarray, rt60: float, direct: float, rng: np.random.Generator) -> np.ndarray:
    """Convolve with a direct sound, and noise that decays exponentially 5 ms after it."""
    time = np.arange(round(rt60 * SAMPLE_RATE)) / SAMPLE_RATE
    # 60 dB is a factor of 1000 in amplitude.
    echoes = rng.standard_normal(len(time)) * 1000 ** (-time / rt60)
    echoes *= 10 ** (-direct / 20) / np.linalg.norm(echoes)
    response = np.concatenate([[1.0], np.zeros(SAMPLE_RATE // 200), echoes])
    size = 1 << (len(x) + len(response) - 2).bit_length()
    spectrum = np.fft.rfft(x, size) * np.fft.rfft(response, size)
    return np.fft.irfft(spectrum, size)[: len(x)]


def _record(x: np.ndarray, gains: tuple[float, ...]) -> np.ndarray:
    """Filter with the gains of a microphone, without delay."""
    size = 1 << (len(x) - 1).bit_length()
    mel = np.log1p(np.fft.rfftfreq(size, 1 / SAMPLE_RATE) / 700)
    gain = np.interp(mel, np.linspace(0, mel[-1], len(gains)), gains)
    return np.fft.irfft(np.fft.rfft(x, size) * 10 ** (gain / 20), size)[: len(x)]


def _noise(length: int, colour: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit RMS, flat below 50 Hz so that its power stays where it is heard."""
    size = 1 << (length - 1).bit_length()
    frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(size)) * np.maximum(frequency, 50) ** (-colour / 2)
    x = np.fft.irfft(spectrum, size)[:length]
    return x / _rms(x)


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))
