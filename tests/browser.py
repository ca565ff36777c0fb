"A headless Chromium over its debugging pipe: what a page shows, and what happens when somebody clicks."
import base64, fcntl, json, os, select, shutil, subprocess, tempfile, time
from pathlib import Path

NAMES = ('chromium','chromium-browser','google-chrome','google-chrome-stable')
FLAGS = ['--headless=new','--no-sandbox','--disable-gpu','--disable-dev-shm-usage','--no-first-run','--hide-scrollbars',
         '--disable-background-networking','--disable-component-update','--disable-sync','--remote-debugging-pipe']
KEYS = {'ArrowLeft': 37, 'ArrowUp': 38, 'ArrowRight': 39, 'ArrowDown': 40, 'Tab': 9, 'Enter': 13, 'Escape': 27, 'Home': 36, 'End': 35}

def find(): return next((p for n in NAMES if (p := shutil.which(n))), None)

def pipe():
    "A pipe whose ends are none of the first descriptors, which the browser wants for itself."
    ends = os.pipe()
    new = tuple(fcntl.fcntl(o, fcntl.F_DUPFD_CLOEXEC, 20) for o in ends)
    for o in ends: os.close(o)
    return new

def said(details):
    "The text of an exception in the page."
    return details.get('exception', {}).get('description') or details['text']

class Browser:
    "One page; `errors` has what the console says, `requests` every address that was asked for."
    def __init__(self, width=1200, height=900, scheme='light'):
        self.home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.errors,self.requests = [],[]
        self.n,self.buf,self.session = 0,b'',None
        (theirs_in,self.out),(self.inp,theirs_out) = pipe(),pipe()
        def inherit(): return os.dup2(theirs_in, 3),os.dup2(theirs_out, 4)   # what Python opens isn't inherited, so nothing else is
        self.p = subprocess.Popen([find(), *FLAGS, f'--user-data-dir={self.home.name}', 'about:blank'], stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=inherit)
        os.close(theirs_in)
        os.close(theirs_out)
        page = next(t for t in self.call('Target.getTargets')['targetInfos'] if t['type'] == 'page')
        self.session = self.call('Target.attachToTarget', targetId=page['targetId'], flatten=True)['sessionId']
        for o in ('Page','Runtime','Log','Network'): self.call(f'{o}.enable')
        self.look(width, height, scheme)

    def __enter__(self): return self

    def __exit__(self, *args):
        self.p.kill()
        self.p.wait()
        os.close(self.out)
        os.close(self.inp)
        self.home.cleanup()

    def read(self, end):
        "The next message."
        while b'\0' not in self.buf:
            if not select.select([self.inp], [], [], max(0, end - time.time()))[0]: raise TimeoutError('the browser says nothing')
            if not (more := os.read(self.inp, 2**20)): raise RuntimeError('the browser has ended')
            self.buf += more
        line,self.buf = self.buf.split(b'\0', 1)
        return json.loads(line)

    def call(self, method, timeout=60, **params):
        self.n += 1
        message = dict(id=self.n, method=method, params=params, **({'sessionId': self.session} if self.session else {}))
        os.write(self.out, json.dumps(message).encode() + b'\0')
        end = time.time() + timeout
        while True:
            m = self.read(end)
            if m.get('id') == self.n:
                if 'error' in m: raise RuntimeError(f'{method}: {m["error"]}')
                return m['result']
            self.event(m)

    def event(self, m):
        kind,p = m.get('method'),m.get('params', {})
        if kind == 'Runtime.exceptionThrown': self.errors.append(said(p['exceptionDetails']))
        if kind == 'Log.entryAdded' and p['entry']['level'] in ('error','warning'): self.errors.append(p['entry']['text'])
        if kind == 'Runtime.consoleAPICalled' and p['type'] in ('error','warning','assert'): self.errors.append(str(p['args']))
        if kind == 'Network.requestWillBeSent': self.requests.append(p['request']['url'])

    def look(self, width, height=900, scheme='light', media=''):
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call('Emulation.setEmulatedMedia', media=media, features=[dict(name='prefers-color-scheme', value=scheme)])

    def open(self, path):
        self.call('Page.navigate', url=Path(path).resolve().as_uri())
        self.wait("document.readyState == 'complete'")

    def js(self, code):
        "The value of an expression in the page."
        r = self.call('Runtime.evaluate', expression=code, returnByValue=True, awaitPromise=True)
        if 'exceptionDetails' in r: raise RuntimeError(said(r['exceptionDetails']))
        return r['result'].get('value')

    def wait(self, code, seconds=20):
        end = time.time() + seconds
        while not self.js(code):
            if time.time() > end: raise TimeoutError(code)
            time.sleep(.02)

    def settle(self):
        "Waits until what a change of size sets off is done."
        self.js('new Promise(f => requestAnimationFrame(() => requestAnimationFrame(f)))')

    def click(self, css, n=0):
        "A click of the mouse in the middle of the `n`th element."
        x,y = self.js(f"""(() => {{
          const e = document.querySelectorAll({json.dumps(css)})[{n}];
          e.scrollIntoView({{block: 'center'}});
          const b = e.getBoundingClientRect();
          return [b.left + b.width/2, b.top + b.height/2];
        }})()""")
        for kind in ('mousePressed','mouseReleased'):
            self.call('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left', clickCount=1)

    def move(self, x, y): self.call('Input.dispatchMouseEvent', type='mouseMoved', x=x, y=y)

    def press(self, key):
        for kind in ('keyDown','keyUp'):
            text = {'text': '\r'} if key == 'Enter' and kind == 'keyDown' else {}
            self.call('Input.dispatchKeyEvent', type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key], **text)

    def type(self, text): self.call('Input.insertText', text=text)

    def shot(self, to, whole=True):
        Path(to).write_bytes(base64.b64decode(self.call('Page.captureScreenshot', captureBeyondViewport=whole)['data']))

    def pdf(self, to):
        Path(to).write_bytes(base64.b64decode(self.call('Page.printToPDF', printBackground=True)['data']))
